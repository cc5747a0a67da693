"""Step 5 of the server: collect shares, rebuild the seeds, and take the masks off the sum.

For a survivor its self seed is combined, for a dropout its mask key; each is checked against what its owner published
before any use. Then every survivor's own mask is subtracted, and every mask between a dropout and a surviving
neighbour. That is nearly all of the server's work, so it is cut into tasks for an executor of processes. A task returns
partial sums in the rings; addition there is exact and commutative, so the bits do not depend on the number of workers.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from covey.secagg import field
from covey.secagg.group import Group
from covey.secagg.keys import Scope, agree, commitment, pair_key, public_key, segment_seed, self_key
from covey.secagg.masks import SignedSeed, add_masks
from covey.secagg.messages import Advertisement, Opening
from covey.secagg.packing import Words, word_dtype
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
        self, group: Group, neighbours: Sequence[tuple[int, ...]], commitments: Mapping[int, bytes],
        sharers: frozenset[int], survivors: frozenset[int],
    ) -> None:  # fmt: skip
        self._group = group
        self._commitments = commitments
        self._survivors = survivors
        self._circle = {p: sorted({p, *neighbours[p]} & sharers) for p in sharers}
        self._openings: dict[int, tuple[bytes, ...]] = {}

    def accept(self, position: int, message: bytes) -> None:
        """Keep a party's shares.

        Raises:
            SecAggMessageError: malformed.
        """
        group = self._group
        opening = Opening.decode(group.session, group.indices[position], message, len(self._circle[position]))
        self._openings[position] = opening.shares

    def check_holders(self) -> None:
        """Raise unless every secret that is needed has ``t`` shares.

        Raises:
            ThresholdError: nothing can be opened.
        """
        least = min(len(self._holders(p)) for p in self._needed())
        if least < self._group.session.threshold:
            raise ThresholdError("opening", expected=f"{self._group.session.threshold} shares", got=str(least))

    def masks(self, executor: Executor | None, num_tasks: int) -> Iterable[list[Words]]:
        """Combine the secrets and yield what to add to the sum, task by task.

        Raises:
            ShareError: combined shares do not give what their owner published: some holder lied.
        """
        tasks = self._tasks(self._secrets(), num_tasks)
        self._openings = {}
        if executor is None:
            return map(unmask_task, tasks)
        return (f.result() for f in [executor.submit(unmask_task, task) for task in tasks])

    def _needed(self) -> list[int]:
        """Return whose secrets have to be combined: all survivors, and dropouts whose masks are in the sum."""
        return [p for p, circle in self._circle.items() if not self._survivors.isdisjoint(circle)]

    def _holders(self, position: int) -> list[int]:
        return [h for h in self._circle[position] if h in self._openings]

    def _secrets(self) -> dict[int, bytes]:
        """Combine from the first ``t`` holders of each; secrets with the same holders are combined together."""
        group, t = self._group, self._group.session.threshold
        place = {p: {q: i for i, q in enumerate(circle)} for p, circle in self._circle.items()}
        by_holders: dict[tuple[int, ...], list[int]] = {}
        for p in self._needed():
            by_holders.setdefault(tuple(self._holders(p)[:t]), []).append(p)
        out: dict[int, bytes] = {}
        for holders, owners in by_holders.items():
            raw = b"".join(self._openings[h][place[h][p]] for p in owners for h in holders)
            shares = field.from_bytes(raw).reshape(len(owners), len(holders), field.LIMBS)
            combined = combine_many([group.indices[h] + 1 for h in holders], shares)
            out |= {p: field.to_bytes(row) for p, row in zip(owners, combined, strict=True)}
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
                "opening", expected="shares that combine to what their owner published", got="others",
                hint="a holder or the owner lied: the group is discarded",
            )  # fmt: skip

    def _tasks(self, secrets: Mapping[int, bytes], num_tasks: int) -> list[UnmaskTask]:
        group = self._group
        survivors = [(group.entry(p), secrets[p]) for p in sorted(self._survivors)]
        gone = sorted(secrets.keys() - self._survivors)
        pairs = [(p, q) for p in gone for q in self._circle[p] if q in self._survivors]
        tasks = []
        for i in range(num_tasks):
            peers: dict[int, list[Advertisement]] = {}
            for p, q in pairs[i::num_tasks]:
                peers.setdefault(p, []).append(group.entry(q))
            shared = tuple((group.entry(p), secrets[p], tuple(qs)) for p, qs in peers.items())
            tasks.append(UnmaskTask(group.session.segments, group.scope, tuple(survivors[i::num_tasks]), shared))
        return tasks
