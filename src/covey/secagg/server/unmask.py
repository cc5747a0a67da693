"""Step 5 of the server: collect shares, rebuild the seeds, and take the masks off the sum.

For a survivor its self seed is combined, for a dropout its mask key; each is checked against what its owner published
before any use. Then every survivor's own mask is subtracted, and every mask between a dropout and a surviving
neighbour. That is nearly all of the server's work, so it is cut into tasks for an executor of processes. A task returns
partial sums in the rings; addition there is exact and commutative, so the bits do not depend on the number of workers.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from covey.secagg import field
from covey.secagg.group import Group
from covey.secagg.keys import SHARE_BYTES, Scope, agree, commitment, pair_key, public_key, segment_seed, self_key
from covey.secagg.masks import SignedSeed, add_masks
from covey.secagg.messages import Advertisement, Opening
from covey.secagg.packing import Words, word_dtype
from covey.secagg.server.share import inbound
from covey.secagg.shamir import combine_many
from covey.types.errors import ShareError, ThresholdError
from covey.types.segments import Segment

__all__ = ["Unmasking", "UnmaskTask", "unmask_task"]


@dataclass(frozen=True, slots=True, repr=False)
class UnmaskTask:
    """A part of the masks to take off.

    Attributes:
        segments: of the session, the counter included.
        scope: what keys are bound to.
        survivors: who they are and their self seeds.
        pairs: dropouts, their mask keys, and those surviving neighbours whose masks with them are in this part.
    """

    segments: tuple[Segment, ...]
    scope: Scope
    survivors: tuple[tuple[Advertisement, bytes], ...]
    pairs: tuple[tuple[Advertisement, bytes, tuple[Advertisement, ...]], ...]


def unmask_task(task: UnmaskTask) -> list[Words]:
    """Return what to add to the sum, by segment, to take this part of the masks off. Runs in a worker process."""
    keys = [(self_key(task.scope, seed, who.index, who.mask_key), True) for who, seed in task.survivors]
    for gone, secret, peers in task.pairs:
        private = X25519PrivateKey.from_private_bytes(secret)
        for peer in peers:
            shared = agree(private, peer.mask_key)
            key = pair_key(task.scope, shared, gone.index, peer.index, gone.mask_key, peer.mask_key)
            # the peer added the mask if its index is the lower one: take it off; otherwise it had subtracted it
            keys.append((key, peer.index < gone.index))
    totals: list[Words] = []
    for number, segment in enumerate(task.segments):
        total: Words = np.zeros(segment.length, word_dtype(segment.ring_bits))
        add_masks(total, [SignedSeed(segment_seed(key, number), negative) for key, negative in keys])
        totals.append(total)
    return totals


class Unmasking:
    """Collects openings from U3."""

    def __init__(
        self,
        group: Group,
        neighbours: NDArray[np.int16],
        commitments: Mapping[int, bytes],
        sharers: frozenset[int],
        survivors: frozenset[int],
    ) -> None:
        self._group = group
        self._commitments = commitments
        self._survivors = survivors
        itself = np.arange(group.size, dtype=np.int16)[:, None]
        self._circle = np.sort(np.concatenate([neighbours, itself], axis=1), axis=1)
        self._shared = _members(sharers, group.size)
        self._survived = _members(survivors, group.size)
        self._answered = np.zeros(group.size, bool)
        self._shares = np.zeros((*self._circle.shape, SHARE_BYTES), np.uint8)

    def accept(self, position: int, message: bytes) -> None:
        """Keep a party's shares.

        Raises:
            SecAggMessageError: malformed.
        """
        group, owners = self._group, self._shared[self._circle[position]]
        opening = Opening.decode(group.session, group.indices[position], message, int(owners.sum()))
        self._shares[position, owners] = np.frombuffer(opening.shares, np.uint8).reshape(-1, SHARE_BYTES)
        self._answered[position] = True

    def check_holders(self) -> None:
        """Raise unless every secret that is needed has ``t`` shares.

        Raises:
            ThresholdError: nothing can be opened.
        """
        least = int(self._answered[self._circle[self._needed()]].sum(axis=1).min())
        if least < self._group.session.threshold:
            raise ThresholdError("opening", expected=f"{self._group.session.threshold} shares", got=str(least))

    def masks(self, executor: Executor | None, num_tasks: int) -> Iterable[list[Words]]:
        """Combine the secrets and yield what to add to the sum, task by task.

        Raises:
            ShareError: combined shares do not give what their owner published: some holder lied.
        """
        tasks = self._tasks(self._secrets(), num_tasks)
        self._shares = np.zeros((0, 0, SHARE_BYTES), np.uint8)
        if executor is None:
            return map(unmask_task, tasks)
        return _results(deque(executor.submit(unmask_task, task) for task in tasks))

    def _needed(self) -> NDArray[np.int64]:
        """Return whose secrets have to be combined: all survivors, and dropouts whose masks are in the sum."""
        return np.flatnonzero(self._shared & self._survived[self._circle].any(axis=1))

    def _secrets(self) -> dict[int, bytes]:
        """Combine every secret from its first ``t`` holders that answered."""
        t, owners = self._group.session.threshold, self._needed()
        circle = self._circle[owners]
        # False sorts before True: those who answered come first, in their order
        first = np.argsort(~self._answered[circle], axis=1, kind="stable")[:, :t]
        holders = np.asarray(self._group.indices, np.uint16)[np.take_along_axis(circle, first, axis=1)] + 1
        places = np.take_along_axis(inbound(self._circle)[owners], first, axis=1)
        shares = self._shares.reshape(-1, SHARE_BYTES)[places]
        combined = combine_many(holders.astype(np.uint16), shares.view("<u2").astype(np.uint16))
        out = {p: field.to_bytes(row) for p, row in zip(owners.tolist(), combined, strict=True)}
        for p, secret in out.items():
            self._check(p, secret)
        return out

    def _check(self, position: int, secret: bytes) -> None:
        group, entry = self._group, self._group.entry(position)
        if position in self._survivors:
            holds = commitment(group.scope, secret, entry.index) == self._commitments[position]
        else:
            holds = public_key(secret) == entry.mask_key
        if not holds:
            raise ShareError(
                "opening",
                expected="shares that combine to what their owner published",
                got="others",
                hint="a holder or the owner lied: the group is discarded",
            )

    def _tasks(self, secrets: Mapping[int, bytes], num_tasks: int) -> list[UnmaskTask]:
        group = self._group
        survivors = [(group.entry(p), secrets[p]) for p in sorted(self._survivors)]
        gone = sorted(secrets.keys() - self._survivors)
        pairs = [(p, q) for p in gone for q in self._circle[p].tolist() if q in self._survivors]
        tasks = []
        for i in range(num_tasks):
            peers: dict[int, list[Advertisement]] = {}
            for p, q in pairs[i::num_tasks]:
                peers.setdefault(p, []).append(group.entry(q))
            shared = tuple((group.entry(p), secrets[p], tuple(qs)) for p, qs in peers.items())
            tasks.append(UnmaskTask(group.session.segments, group.scope, tuple(survivors[i::num_tasks]), shared))
        return tasks


def _results(futures: deque[Future[list[Words]]]) -> Iterable[list[Words]]:
    while futures:
        yield futures.popleft().result()  # and let it go: partial sums are as large as the sum


def _members(positions: Iterable[int], size: int) -> NDArray[np.bool_]:
    out = np.zeros(size, bool)
    out[list(positions)] = True
    return out
