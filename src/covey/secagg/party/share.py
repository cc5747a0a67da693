"""Step 2 of a party: check who takes part, and share both secrets among its neighbours and itself."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from covey.secagg.group import Group
from covey.secagg.keys import KEY_BYTES, SHARE_BYTES, agree, check_public_keys, commitment, seal_key, seal_share
from covey.secagg.messages import Advertisement, Roster, Shares
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
    group, own = Group(session, roster), state.own
    position = bisect_left(group.indices, own.index)
    if own.index not in group.indices or group.entry(position) != own:
        raise PublicKeyError("roster", expected="this party's own keys, as it advertised them", got="others or none")
    neighbours = group.graph.neighbours(position)
    self_seed = randomness(KEY_BYTES)
    holders = [own.index + 1, *(group.indices[p] + 1 for p in neighbours)]
    # limbs are shared one by one, so both secrets go at once: half of a share is the mask key's, half the seed's
    shares = split(state.mask_private + self_seed, session.threshold, holders, randomness)
    sealed, keys = [], {}
    for p, dealt in zip(neighbours, shares[1:], strict=True):
        peer, scope = group.entry(p), group.scope
        shared = agree(state.cipher, peer.cipher_key)
        there = seal_key(scope, shared, own.index, peer.index, own.cipher_key, peer.cipher_key)
        keys[p] = seal_key(scope, shared, peer.index, own.index, peer.cipher_key, own.cipher_key)
        sealed.append(seal_share(scope, there, own.index, peer.index, dealt))
    committed = commitment(group.scope, self_seed, own.index)
    shared_state = Shared(group, position, neighbours, state.mask_private, self_seed, shares[0][SHARE_BYTES:], keys)
    return shared_state, Shares(own.index, committed, b"".join(sealed)).encode(session)


def check_roster(session: Session, roster: Roster, own_index: int, now_s: int) -> None:
    """Check U1: enough parties, every key canonical and used once; in active mode, who they are.

    Raises:
        ThresholdError: fewer than ``t`` or ``min_survivors``.
        PublicKeyError: a key that is repeated, not canonical, or not signed by its party.
        EnrolmentError: an identity that the pinned authority did not certify, an expired or a repeated one.
    """
    size = len(roster.indices)
    if size < session.quorum:
        raise ThresholdError("roster", expected=f"at least {session.quorum} parties", got=str(size))
    check_public_keys(roster.public_keys(session))
    if session.is_active:
        _check_identities(session, [roster.entry(session, p) for p in range(size)], own_index, now_s)


def _check_identities(session: Session, entries: Sequence[Advertisement], own_index: int, now_s: int) -> None:
    if len({e.certificate.identity_key for e in entries if e.certificate}) != len(entries):
        raise EnrolmentError("roster", expected="a different identity for each party", got="one twice")
    for entry in entries:
        if entry.index != own_index:  # its own is compared byte for byte with what it sent
            entry.verify(session, now_s)
