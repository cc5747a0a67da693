"""The pinned authority at the device: when it is asked again, and what of its answers is believed."""

import httpx
import msgspec
import pytest

from covey.device.authority import PinnedAuthority
from covey.types.errors import EnrolmentError, TransportError, UsageError
from covey.wire.messages import Certified, Certify, encode_message

from . import world

NOW_S = 1_000_000


class Network(httpx.MockTransport):
    """An authority of the test's own: it certifies for ``lifetime_s``; ``change`` spoils what it says."""

    def __init__(self, lifetime_s=3600, authority=world.AUTHORITY, change=lambda answer: answer):
        super().__init__(self.answer)
        self.asked, self.lifetime_s, self.authority, self.change = [], lifetime_s, authority, change
        self.now_s = NOW_S

    def answer(self, request):
        assert request.url.path == "/v1/certify" and "authorization" not in request.headers
        message = msgspec.json.decode(request.content, type=Certify)
        self.asked.append(message)
        made = self.authority.certify(bytes.fromhex(message.identity_key), self.now_s + self.lifetime_s)
        answer = Certified(expires_at=made.expires_at, signature=made.signature.hex())
        return httpx.Response(200, stream=httpx.ByteStream(encode_message(self.change(answer))))


def pinned(network, **fields):
    return PinnedAuthority("https://authority", world.AUTHORITY.public_key, world.POPULATION, network=network, **fields)


def test_an_identity_is_kept_until_a_quarter_of_its_lifetime_is_left_and_is_then_another():
    network = Network()
    authority = pinned(network, attestation=lambda: f"token {len(network.asked)}")
    first = authority.identity(NOW_S)
    assert authority.identity(NOW_S + 2699) is first and len(network.asked) == 1
    network.now_s += 2700
    second = authority.identity(NOW_S + 2700)
    assert second.certificate.identity_key != first.certificate.identity_key
    assert [m.attestation for m in network.asked] == ["token 0", "token 1"]
    assert {m.population for m in network.asked} == {world.POPULATION}


@pytest.mark.parametrize(
    "change",
    [
        lambda a: msgspec.structs.replace(a, expires_at=a.expires_at + 1),
        lambda a: msgspec.structs.replace(a, expires_at=-1),
        lambda a: msgspec.structs.replace(a, expires_at=1 << 63),
        lambda a: msgspec.structs.replace(a, signature="no hex"),
        lambda a: msgspec.structs.replace(a, signature=""),
        lambda a: msgspec.structs.replace(a, signature="00" * 64),
    ],
)
def test_what_is_no_certificate_for_this_key_is_not_believed(change):
    with pytest.raises(EnrolmentError):
        pinned(Network(change=change)).identity(NOW_S)


@pytest.mark.parametrize(
    "network",
    [
        Network(lifetime_s=0),
        Network(authority=type(world.AUTHORITY)(world.OWNER, world.POPULATION)),
        Network(authority=type(world.AUTHORITY)(world.AUTHORITY._key, "other")),
    ],
    ids=["expired", "another authority", "another population"],
)
def test_a_certificate_that_others_would_refuse_is_refused_at_once(network):
    authority = pinned(network)
    for _ in range(2):  # and it is not kept
        with pytest.raises(EnrolmentError):
            authority.identity(NOW_S)
    assert len(network.asked) == 2


def test_an_authority_that_is_away_and_addresses_that_are_none():
    def away(request):
        raise httpx.ConnectError("no")

    with pytest.raises(TransportError):
        pinned(httpx.MockTransport(away)).identity(NOW_S)
    with pytest.raises(UsageError):
        PinnedAuthority("http://authority", bytes(32), "p")
    pinned(Network()).abort()  # nothing is under way
