"""Public keys and identities: every wrong one is refused, by the server and by every party."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.secagg import EnrolmentAuthority, Identity, Server, Step
from covey.secagg.encoding import HEADER_BYTES
from covey.secagg.keys import public_key
from covey.secagg.messages import Advertisement, Roster
from covey.types.errors import (
    EnrolmentError,
    PublicKeyError,
    SecAggParameterError,
    ShareError,
)
from secagg.sessions import ACTIVE, BOTH, HBC, NOW_S, Run, at, identity, is_over, party, session


def advertised(run, index, cipher=None, mask=None) -> bytes:
    message = bytearray(run.parties[index].advertise())
    if cipher is not None:
        message[HEADER_BYTES : HEADER_BYTES + 32] = cipher
    if mask is not None:
        message[HEADER_BYTES + 32 : HEADER_BYTES + 64] = mask
    return bytes(message)


P = (2**255 - 19).to_bytes(32, "little")
BAD_KEYS = {"not canonical": P, "top bit": bytes(31) + b"\x80", "low order": bytes(32), "order two": b"\1" + bytes(31)}


@pytest.mark.parametrize("raw", BAD_KEYS.values(), ids=BAD_KEYS)
@pytest.mark.parametrize("which", ["cipher", "mask"])
def test_bad_public_keys_are_refused_by_the_server_and_by_every_party(raw, which):
    run = Run(session())
    with pytest.raises(PublicKeyError):
        run.server.accept(0, advertised(run, 0, **{which: raw}))
    run.until(Step.SHARE)
    told = run.told[0]
    place = HEADER_BYTES + 2 + 66 * 3 + 2 + (32 if which == "mask" else 0)
    with pytest.raises(PublicKeyError):
        run.parties[0].share(told[:place] + raw + told[place + 32 :])
    assert is_over(run.parties[0])


def test_a_key_that_is_used_twice_is_refused():
    run = Run(session())
    run.server.accept(0, run.parties[0].advertise())
    theirs = run.parties[0].advertise()[HEADER_BYTES : HEADER_BYTES + 32]
    with pytest.raises(PublicKeyError, match="repeated"):
        run.server.accept(1, advertised(run, 1, mask=theirs))
    own = run.parties[1].advertise()[HEADER_BYTES : HEADER_BYTES + 32]
    with pytest.raises(PublicKeyError, match="repeated"):
        run.server.accept(1, advertised(run, 1, mask=own))
    run.until(Step.SHARE)
    told = run.told[0]
    third, fourth = (HEADER_BYTES + 2 + 66 * p + 2 for p in (3, 4))
    repeated = told[:fourth] + told[third : third + 32] + told[fourth + 32 :]
    with pytest.raises(PublicKeyError, match="twice"):
        run.parties[0].share(repeated)


@BOTH
def test_a_roster_with_other_keys_for_oneself_is_refused(mode):
    run = at(Step.SHARE, mode)
    other = public_key(b"x" * 32)
    place = HEADER_BYTES + 2 + 2
    told = run.told[0]
    with pytest.raises(PublicKeyError, match="own keys"):
        run.parties[0].share(told[:place] + other + told[place + 32 :])
    without_me = Roster.of([run.server._sharing.group.entry(p) for p in (0, 2, 3, 4, 5)])
    with pytest.raises(PublicKeyError, match="own keys"):
        run.parties[1].share(without_me.encode(run.session))


def test_keys_that_the_server_swapped_are_refused_in_active_mode():
    run = at(Step.SHARE, ACTIVE)
    told, other = run.told[0], public_key(b"x" * 32)
    size = 2 + run.session.entry_bytes
    place = HEADER_BYTES + 2 + size * 3 + 2
    with pytest.raises(PublicKeyError, match="signed"):
        run.parties[0].share(told[:place] + other + told[place + 32 :])


def test_keys_that_are_replayed_from_another_session_are_refused_in_active_mode():
    old = Run(session(ACTIVE, round_id="0")).until(Step.SHARE)
    run = at(Step.SHARE, ACTIVE)
    entries = [run.server._sharing.group.entry(p) for p in range(6)]
    entries[3] = old.server._sharing.group.entry(3)
    other_identity = Run(session(ACTIVE, round_id="0"), seed=9).until(Step.SHARE).server._sharing.group.entry(3)
    for entry in (entries[3], other_identity):
        fresh = at(Step.SHARE, ACTIVE)
        listed = [*entries[:3], entry, *entries[4:]]
        with pytest.raises(PublicKeyError, match="signed"):
            fresh.parties[0].share(Roster.of(listed).encode(run.session))


def test_swapped_keys_without_signatures_only_spoil_the_sum():
    """An honest-but-curious server does not swap; if one does, shares do not open and the party leaves."""
    run = at(Step.SHARE)
    told, other = run.told[0], public_key(b"x" * 32)
    place = HEADER_BYTES + 2 + 66 * 3 + 2
    run.told[0] = told[:place] + other + told[place + 32 :]
    with pytest.raises(ShareError):
        run.open()


def test_active_mode_needs_an_authority_and_an_identity():
    with pytest.raises(SecAggParameterError, match="authority"):
        session(ACTIVE, authority=b"")
    with pytest.raises(EnrolmentError, match="identity"):
        party(session(ACTIVE), 0, identity=None)
    with pytest.raises(EnrolmentError, match="no identity"):
        party(session(HBC), 0, identity=identity(0))


STRANGER = EnrolmentAuthority(Ed25519PrivateKey.from_private_bytes(b"a stranger's authority, 32 bytes"), "tests")
ELSEWHERE = EnrolmentAuthority(Ed25519PrivateKey.from_private_bytes(b"authority of the tests, 32 bytes"), "elsewhere")
BAD_IDENTITIES = {
    "another authority": identity(7, STRANGER),
    "another population": identity(7, ELSEWHERE),
    "expired": identity(7, expires_at=NOW_S),
}


def roster_with(run, position, entry) -> bytes:
    listed = [run.server._sharing.group.entry(p) for p in range(6)]
    listed[position] = entry
    return Roster.of(listed).encode(run.session)


@pytest.mark.parametrize("bad", BAD_IDENTITIES.values(), ids=BAD_IDENTITIES)
def test_identities_without_a_valid_certificate(bad):
    s = session(ACTIVE)
    with pytest.raises(EnrolmentError):
        party(s, 0, identity=bad)
    careless = party(s, 3)
    careless._identity = bad  # a party that does not check itself
    with pytest.raises(EnrolmentError):
        Server(s, used_sessions=set(), now_s=NOW_S).accept(3, careless.advertise())
    run = at(Step.SHARE, ACTIVE)
    with pytest.raises(EnrolmentError):  # nor does a server that lets it in get it past the others
        run.answer(0, roster_with(run, 3, Advertisement.decode(s, 3, careless.advertise())))
    assert is_over(run.parties[0])


def test_a_certificate_of_another_key_is_refused():
    stolen = Identity(Ed25519PrivateKey.generate(), identity(1).certificate)
    with pytest.raises(EnrolmentError, match="this key"):
        party(session(ACTIVE), 0, identity=stolen)


def test_one_identity_cannot_be_two_parties():
    s = session(ACTIVE)
    again = party(s, 3)
    again._identity = party(s, 4)._identity
    server = Server(s, used_sessions=set())
    server.accept(4, party(s, 4).advertise())
    with pytest.raises(EnrolmentError, match="of its own"):
        server.accept(3, again.advertise())
    run = at(Step.SHARE, ACTIVE)
    with pytest.raises(EnrolmentError, match="different identity"):
        run.answer(0, roster_with(run, 3, Advertisement.decode(s, 3, again.advertise())))


def test_keys_that_their_party_did_not_sign_are_refused_by_the_server():
    s = session(ACTIVE)
    message = party(s, 0).advertise()
    place = HEADER_BYTES + 32
    with pytest.raises(PublicKeyError, match="signed"):
        Server(s, used_sessions=set()).accept(0, message[:place] + public_key(b"x" * 32) + message[place + 32 :])
