"""The server of one group: collects messages, closes steps, opens the sum."""

import enum
import hashlib
from collections.abc import Iterable, MutableSet
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.secagg.encoding import HEADER_BYTES
from covey.secagg.keys import SEALED_BYTES, SHARE_BYTES
from covey.secagg.packing import CHUNK, Words
from covey.secagg.server.advertise import Advertising
from covey.secagg.server.consistency import Agreeing
from covey.secagg.server.mask import Masking
from covey.secagg.server.share import Sharing
from covey.secagg.server.unmask import Unmasking
from covey.secagg.session import Session
from covey.types.errors import (
    AlreadyCountedError,
    ConsistencyError,
    CounterError,
    RoundClosedError,
    SecAggError,
    SecAggParameterError,
    SessionReusedError,
    StateError,
    ThresholdError,
)
from covey.types.segments import Segment

__all__ = ["Opened", "Server", "Step"]


class Step(enum.IntEnum):
    """What the server waits for; it only goes forward."""

    ADVERTISE = 1
    SHARE = 2
    MASK = 3
    CONSISTENCY = 4
    UNMASK = 5
    OPEN = 6
    CLOSED = 7


@dataclass(frozen=True, slots=True)
class Opened:
    """The sums of a group.

    Attributes:
        sums: one vector for each segment: int64 where it is signed, uint64 where not.
        survivors: the indices of the parties whose inputs are in them, ascending.
    """

    sums: tuple[NDArray[np.int64] | NDArray[np.uint64], ...]
    survivors: tuple[int, ...]


class Server:
    """One group's server: bytes in, bytes out.

    ``accept`` takes a party's message for the present step; ``close_step`` ends the step, usually at a deadline, and
    returns what goes to each party. ``accept`` is cheap (a masked input costs one pass over it), ``open`` is the heavy
    part and may run elsewhere. A group that falls under a threshold raises, is discarded, and stays closed.

    The transport vouches for who sent a message: ``index`` must come from an authenticated session, never from the
    body. Not thread-safe.
    """

    def __init__(self, session: Session, *, used_sessions: MutableSet[bytes], now_s: int = 0) -> None:
        """Begin with advertising.

        Args:
            session: what the parties will compute for themselves.
            used_sessions: the ids of all sessions of this server; this one is added.
            now_s: in active mode, seconds since 1970: parties whose certificate has expired by then are refused here
                rather than by every other party.

        Raises:
            SessionReusedError: the session was used before.
        """
        if session.id in used_sessions:
            raise SessionReusedError("session", expected="an id that was never used", got="one that was")
        used_sessions.add(session.id)
        self.session = session
        self.step = Step.ADVERTISE
        self._advertising = Advertising(session, now_s)
        self._sharing: Sharing | None = None
        self._masking: Masking | None = None
        self._agreeing: Agreeing | None = None
        self._unmasking: Unmasking | None = None
        self._positions: dict[int, int] = {}
        self._expected = frozenset(range(session.n_max))
        self._answered: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"Server(step={self.step.name}, answered={len(self._answered)} of {len(self._expected)})"

    @property
    def expected(self) -> frozenset[int]:
        """Whose messages this step takes."""
        return self._expected

    @property
    def answered(self) -> frozenset[int]:
        """Whose message this step has."""
        return frozenset(self._answered)

    @property
    def max_message_bytes(self) -> int:
        """The longest message that this step takes: a transport need not read more."""
        s = self.session
        bodies = {
            Step.ADVERTISE: s.entry_bytes,
            Step.SHARE: 32 + 2 + s.num_neighbours * SEALED_BYTES,
            Step.MASK: s.packed_bytes,
            Step.CONSISTENCY: 64,
            Step.UNMASK: 2 + (s.num_neighbours + 1) * SHARE_BYTES,
        }
        return HEADER_BYTES + bodies[self.step] if self.step in bodies else 0

    def accept(self, index: int, message: bytes) -> None:
        """Take a party's message for this step. The same bytes again are no error and change nothing.

        Raises:
            SecAggMessageError, PublicKeyError, EnrolmentError, ConsistencyError: the message fails a check; nothing was
                kept.
            AlreadyCountedError: a second masked input, discarded unread.
            RoundClosedError: late, or from a party that is not, or no longer, in this step; discarded unread.
        """
        if self.step >= Step.OPEN:
            raise RoundClosedError(self._where, expected="a message before the end", got="a late one")
        if index not in self._expected:
            raise RoundClosedError(self._where, expected="a party of this step", got="one that is not in it")
        if index in self._answered:
            self._check_repeated(index, message)
            return
        position = self._positions.get(index, -1)
        if self.step is Step.ADVERTISE:
            self._advertising.accept(index, message)
        elif self._sharing is not None and self.step is Step.SHARE:
            self._sharing.accept(position, message)
        elif self._masking is not None and self.step is Step.MASK:
            self._masking.accept(position, message)
        elif self._agreeing is not None and self.step is Step.CONSISTENCY:
            self._agreeing.accept(position, message)
        elif self._unmasking is not None:
            self._unmasking.accept(position, message)
        self._answered[index] = b"" if self.step is Step.MASK else _digest(message)

    def close_step(self) -> dict[int, bytes]:
        """End the present step and return what goes to each party of the next one.

        After unmasking nothing goes out: the dict is empty and :meth:`open` is next.

        Raises:
            ThresholdError: fewer than ``t`` or ``min_survivors`` parties are left; the group is discarded.
            StateError: no step is open.
        """
        if self.step >= Step.OPEN:
            raise StateError("close_step", expected="an open step", got=self.step.name)
        try:
            return self._close()
        except SecAggError:
            self.discard()
            raise

    def open(self, executor: Executor | None = None, num_tasks: int = 1) -> Opened:
        """Take the masks off, check the counter, and return the sums. Once: nothing is kept.

        Args:
            executor: of processes; None works here.
            num_tasks: into how many parts to cut; a few for each worker. The bits are the same for any number.

        Raises:
            ShareError: shares do not combine to what their owner published.
            CounterError: the opened counter is not the number of survivors.
            StateError: unmasking is not over.
        """
        masking, unmasking = self._masking, self._unmasking
        if self.step is not Step.OPEN or masking is None or unmasking is None:
            raise StateError("open", expected="a server after unmasking", got=self.step.name)
        if num_tasks < 1:
            raise SecAggParameterError("open", expected="at least 1 task", got=str(num_tasks))
        try:
            _add(masking.totals, unmasking.masks(executor, num_tasks))
            *sums, counter = (_lift(s, t) for s, t in zip(self.session.segments, masking.totals, strict=True))
            if int(counter[0]) != len(masking.survivors):
                raise CounterError("open", expected=f"a count of {len(masking.survivors)}", got="another")
            indices = {p: i for i, p in self._positions.items()}
            return Opened(tuple(sums), tuple(sorted(indices[p] for p in masking.survivors)))
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget everything: the group is over."""
        if self._masking is not None:
            self._masking.clear()
        self._sharing = self._masking = self._agreeing = self._unmasking = None
        self._expected, self._answered = frozenset(), {}
        self.step = Step.CLOSED

    @property
    def _where(self) -> str:
        return f"secure aggregation, step {self.step.name.lower()}"

    def _check_repeated(self, index: int, message: bytes) -> None:
        if self.step is Step.MASK:
            raise AlreadyCountedError(self._where, expected="one masked input of a party", got="a second one")
        if self._answered[index] != _digest(message):
            raise ConsistencyError(self._where, expected="the same bytes as the first time", got="others")

    def _close(self) -> dict[int, bytes]:
        left = self._answered.keys()
        needed = self.session.threshold if self.step >= Step.CONSISTENCY else self.session.quorum
        if len(left) < needed:
            raise ThresholdError(self._where, expected=f"at least {needed} parties", got=str(len(left)))
        if self.step is Step.ADVERTISE:
            group, out = self._advertising.close()
            self._positions = {index: p for p, index in enumerate(group.indices)}
            self._sharing = Sharing(group)
            return self._next(Step.SHARE, out)
        sharing, masking = self._sharing, self._masking
        assert sharing is not None
        if self.step is Step.SHARE:
            delivered = sharing.close()
            self._masking = Masking(sharing.group, frozenset(delivered))
            return self._next(Step.MASK, self._by_index(delivered))
        assert masking is not None
        survivors = frozenset(masking.survivors)
        if self.step is Step.MASK:
            told = self._by_index(masking.close())
            if self.session.is_active:
                self._agreeing = Agreeing(sharing.group, masking.sharers, survivors)
                return self._next(Step.CONSISTENCY, told)
            return self._to_unmask(sharing, masking, told)
        if self._agreeing is not None and self.step is Step.CONSISTENCY:
            return self._to_unmask(sharing, masking, self._by_index(self._agreeing.close()))
        assert self._unmasking is not None
        self._unmasking.check_holders()
        return self._next(Step.OPEN, {})

    def _to_unmask(self, sharing: Sharing, masking: Masking, out: dict[int, bytes]) -> dict[int, bytes]:
        survivors = frozenset(masking.survivors)
        self._unmasking = Unmasking(sharing.group, sharing.neighbours, sharing.commitments, masking.sharers, survivors)
        return self._next(Step.UNMASK, out)

    def _next(self, step: Step, out: dict[int, bytes]) -> dict[int, bytes]:
        self.step, self._expected, self._answered = step, frozenset(out), {}
        return out

    def _by_index(self, messages: dict[int, bytes]) -> dict[int, bytes]:
        indices = {p: i for i, p in self._positions.items()}
        return {indices[p]: m for p, m in messages.items()}


def _digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()  # enough to tell a retry; the message itself need not be kept


def _add(totals: list[Words], parts: Iterable[list[Words]]) -> None:
    for part in parts:
        for total, words in zip(totals, part, strict=True):
            np.add(total, words, out=total)


def _lift(segment: Segment, total: Words) -> NDArray[np.int64] | NDArray[np.uint64]:
    """Return the integers of a ring: the residues nearest to zero where the segment is signed."""
    low = np.uint64((1 << segment.ring_bits) - 1)
    half = np.uint64(1 << (segment.ring_bits - 1) if segment.signed else 0)
    out = np.empty(segment.length, np.uint64)
    for i in range(0, segment.length, CHUNK):
        # (x ^ h) - h turns the residues from h up into the negative numbers that they stand for, modulo 2^64
        out[i : i + CHUNK] = ((total[i : i + CHUNK] & low) ^ half) - half
    return out.view(np.int64) if segment.signed else out
