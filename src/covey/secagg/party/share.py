"""Step 2 of a party: check who takes part, and share both secrets among its neighbours and itself."""

from collections.abc import Callable
from dataclasses import dataclass

from covey.secagg.group import Group
from covey.secagg.identity import verify, verify_certificate
from covey.secagg.keys import KEY_BYTES, SHARE_BYTES, agree, check_public_key, commitment, seal_key, seal_share
from covey.secagg.messages import Roster, Shares
from covey.secagg.party.advertise import Advertised
from covey.secagg.session import Session
from covey.secagg.shamir import split
from covey.types.errors import EnrolmentError, PublicKeyError, ThresholdError

__all__ = ["Shared", "check_roster", "share"]


@dataclass(frozen=True, slots=True, repr=False)
class Shared:
    """After step 2.

    Attributes:
        group: U1.
        position: the party's own.
        neighbours: their positions, ascending.
        mask_private: the private key for masks.
        self_seed: 32 bytes: the seed of its own mask.
        own_share: the party's own share of its self seed.
        keys: for each neighbour's position, the key that opens its sealed share.
    """

    group: Group
    position: int
    neighbours: tuple[int, ...]
    mask_private: bytes
    self_seed: bytes
    own_share: bytes
    keys: dict[int, bytes]


def share(
    state: Advertised, session: Session, message: bytes, now_s: int, randomness: Callable[[int], bytes]
) -> tuple[Shared, bytes]:
    """Return the state after step 2 and the message.

    Raises:
        SecAggMessageError, ThresholdError, PublicKeyError, EnrolmentError: see :func:`check_roster`.
    """
    roster = Roster.decode(session, message)
    check_roster(session, roster, state.own.index, now_s)
    group = Group.of(session, roster)
    position = group.position(state.own.index)
    if position is None or group.entries[position] != state.own:
        raise PublicKeyError("roster", expected="this party's own keys, as it advertised them", got="others or none")
    neighbours = group.graph.neighbours(position)
    self_seed = randomness(KEY_BYTES)
    holders = [state.own.index + 1, *(group.entries[p].index + 1 for p in neighbours)]
    # one polynomial for both secrets, limb by limb: the first half of a share is the mask key's, the other the seed's
    shares = split(state.mask_private + self_seed, session.threshold, holders, randomness)
    sealed, keys = [], {}
    for p, dealt in zip(neighbours, shares[1:], strict=True):
        peer, own, scope = group.entries[p], state.own, group.scope
        shared = agree(state.cipher, peer.cipher_key)
        there = seal_key(scope, shared, own.index, peer.index, own.cipher_key, peer.cipher_key)
        keys[p] = seal_key(scope, shared, peer.index, own.index, peer.cipher_key, own.cipher_key)
        sealed.append(seal_share(scope, there, own.index, peer.index, dealt))
    committed = commitment(group.scope, self_seed, state.own.index)
    shared_state = Shared(group, position, neighbours, state.mask_private, self_seed, shares[0][SHARE_BYTES:], keys)
    return shared_state, Shares(state.own.index, committed, tuple(sealed)).encode(session)


def check_roster(session: Session, roster: Roster, own_index: int, now_s: int) -> None:
    """Check U1: enough parties, every key canonical and used once; in active mode, who they are.

    Raises:
        ThresholdError: fewer than ``t`` or ``min_survivors``.
        PublicKeyError: a key that is repeated, not canonical, or not signed by its party.
        EnrolmentError: an identity that the pinned authority did not certify, an expired or a repeated one.
    """
    if len(roster.entries) < session.quorum:
        raise ThresholdError("roster", expected=f"at least {session.quorum} parties", got=str(len(roster.entries)))
    keys = [k for e in roster.entries for k in (e.cipher_key, e.mask_key)]
    for key in keys:
        check_public_key(key)
    if len(set(keys)) != len(keys):
        raise PublicKeyError("roster", expected="keys that are all different", got="one twice")
    if not session.is_active:
        return
    certificates = [e.certificate for e in roster.entries if e.certificate]
    if len({c.identity_key for c in certificates}) != len(roster.entries):
        raise EnrolmentError("roster", expected="a different identity for each party", got="one twice")
    for entry, certificate in zip(roster.entries, certificates, strict=True):
        if entry.index == own_index:
            continue  # compared byte for byte with what this party sent
        verify_certificate(certificate, session.authority, session.population, now_s)
        error = PublicKeyError("roster", expected="keys signed by their party for this session", got="others")
        verify(certificate.identity_key, entry.signature, entry.statement(session), error)
