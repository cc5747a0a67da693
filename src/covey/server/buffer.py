"""A buffer of asynchronous aggregation, filling up again and again (2106.06639, Algorithm 1).

::

    reporting -> closing -> committed -> reporting ...
        | ^
        v |  (a pause, or a round of another task)
       aside

Up to ``concurrency`` devices train at any time; as one ends, another begins, with the newest version of the model.
The ``goal``-th update closes the buffer, and with its commit the next one is open: sessions outlive it. What is folded
between the closing and the commit is in the next one already, and weighed for it. A session ends with its report, at
its deadline, or with the commit that makes it too stale; its place is then another device's.

A pause, or the turn of another task, sets a buffer aside: what is in the air is folded still, nobody begins, and the
model stays. A commit that fails, a cancellation and a roll-back end it, with all its sessions.
"""

import contextlib
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import msgspec

from covey.algorithms.fedbuff import Asynchrony
from covey.server.attempt import Attempt, RoundState, Tally, send_away
from covey.server.messages import (
    CloseShard,
    Counted,
    DevicesSelected,
    EndSessions,
    Envelope,
    Lost,
    OpenShard,
    Reply,
    ShardClosed,
    WantDevices,
    WantNobody,
    device_address,
    selector_address,
)
from covey.types.errors import CoveyError
from covey.wire.administration import BufferStatus
from covey.wire.messages import Assignment

__all__ = ["STALENESS", "Buffer"]

STALENESS = "staleness"
"""Under this name a row's metrics have the mean staleness of its updates."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Sessions that began together: in a shard, with a version, until a deadline."""

    deadline_s: float
    shard: int
    sessions: tuple[str, ...]


@dataclass(slots=True)
class Buffer(Attempt):
    """The buffers of one task, one after another. Laws: each commit is of at least ``goal`` updates, each once.

    ``tally`` is that of the buffer at hand.
    """

    _open: int = 0
    _later: Tally = field(default_factory=Tally)  # of the buffer after the one that is closing
    _given: Assignment | None = None  # what is assigned of the newest version
    _batches: deque[_Batch] = field(default_factory=deque)
    _held: dict[int, tuple[str, float]] = field(default_factory=dict)  # by version: its blob, and for how long

    @property
    def last_phase(self) -> bool:
        """Whether the next buffer begins after this phase: it has one only."""
        return True

    @property
    def status(self) -> BufferStatus:
        """How far it is."""
        counted = self.tally.counted
        mean = self.tally.staleness / counted if counted else 0.0
        return BufferStatus(updates=counted, devices=self._open, staleness=mean)

    def begin(self, now_s: float) -> list[Envelope]:
        """Begin the first buffer, or the next one after a commit, or go on with one that was set aside."""
        out = []
        if self.state is not RoundState.ASIDE:
            self.work.begin()
            self.started_s = self.reporting_since_s = now_s
            self.ended = None
        if not self._shards:
            self._shards = tuple(range(self.num_shards))
            opening = OpenShard(self.name, 0, (), None, self.work.number, self._asynchrony.max_staleness)
            out = [Envelope(self._aggregator(i), opening) for i in self._shards]
        self.state = RoundState.REPORTING
        return out + self._progress()

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take DevicesSelected, Counted, Lost or ShardClosed of this attempt."""
        match message:
            case DevicesSelected(tickets=tickets):
                return self._admit(tickets, now_s)
            case Counted(bytes_up=num_bytes, number=number, staleness=staleness):
                tally = self.tally if number == self.work.number else self._later
                tally.counted += 1
                tally.bytes_up += num_bytes
                tally.staleness += staleness
                self._open -= 1
                return self._progress()
            case Lost():
                (self._later if self.state is RoundState.CLOSING else self.tally).lost += 1
                self._open -= 1
                return self._progress()
            case ShardClosed(total=total):
                self._sums.append(total)
                return self._apply(now_s) if len(self._sums) == len(self._shards) else []
        raise AssertionError(f"the coordinator does not take {type(message).__name__}")

    def next_deadline_s(self) -> float | None:
        """Return when the next sessions have had their time."""
        return self._batches[0].deadline_s if self._batches else None

    def tick(self, now_s: float) -> list[Envelope]:
        """Take the places of devices that vanished; the aggregators know which sessions are still open."""
        out = []
        while self._batches and self._batches[0].deadline_s <= now_s:
            batch = self._batches.popleft()
            out.append(Envelope(self._aggregator(batch.shard), EndSessions(self.name, batch.sessions)))
        if out:
            self._hold(now_s)
        return out

    def set_aside(self) -> list[Envelope]:
        """Let nobody begin until :meth:`begin`; what is in the air is folded still."""
        self.state = RoundState.ASIDE
        return [self._wish(0)]

    def abandon(self, reason: str, now_s: float) -> list[Envelope]:
        """End it without a commit, with all its sessions, which are told when they report."""
        self.tally.selected = self.tally.counted + self.tally.lost + self._open
        self.ended = self._row("abandoned", reason, now_s, {})
        self.state, self._open = RoundState.ENDED, 0
        self._batches.clear()
        self._held.clear()
        self._hold(now_s)
        return [*self._discard(), self._wish(0)]

    def _progress(self) -> list[Envelope]:
        if self.state is not RoundState.REPORTING:
            return []
        if self.tally.counted < self.settings.goal:
            return [self._wish(self._asynchrony.concurrency - self._open)]
        self.state = RoundState.CLOSING
        closing = CloseShard(self.name, following=self.work.number + 1)
        return [self._wish(0), *(Envelope(self._aggregator(i), closing) for i in self._shards)]

    def _wish(self, room: int) -> Envelope:
        """Return the standing wish for whoever comes, as many as there is room for."""
        wanted = WantDevices(self.name, room, at_least=1, patience_s=0.0, give_up_at_s=math.inf)
        return Envelope(selector_address(self.population), wanted if room > 0 else WantNobody(self.name))

    def _admit(self, tickets: tuple[str, ...], now_s: float) -> list[Envelope]:
        """Let devices begin with the newest version."""
        if self.state is not RoundState.REPORTING:
            return send_away(tickets)
        try:
            if self._given is None:
                self._given = self._offer(f"{self.name}/{self.work.number}")
        except CoveyError as error:  # a full disk, say
            return self.abandon(error.code, now_s) + send_away(tickets)
        offer, until_s = self._given, now_s + self.settings.report_timeout_s
        sessions = [self.new_token() for _ in tickets]
        out = []
        # The shards take turns. Aggregators first: a report must never overtake the message that makes room for it.
        for i in self._shards:
            if own := tuple(sessions[(i - self.tally.selected) % len(self._shards) :: len(self._shards)]):
                self._batches.append(_Batch(until_s, i, own))
                out.append(Envelope(self._aggregator(i), OpenShard(self.name, 0, own, offer)))
        for ticket, session in zip(tickets, sessions, strict=True):
            out.append(Envelope(device_address(ticket), Reply(msgspec.structs.replace(offer, session=session))))
        self.tally.selected += len(tickets)
        self._open += len(tickets)
        self._held[self.work.number] = (offer.checkpoint.sha256, until_s)
        self._hold(now_s)
        return out + self._progress()

    def _apply(self, now_s: float) -> list[Envelope]:
        """Open the sum, apply it and commit."""
        try:
            means = dict(self.work.apply(0, self.name, self._opened()))
            tally = self.tally
            tally.selected = tally.counted + tally.lost  # whose sessions ended in its time
            means[STALENESS] = tally.staleness / tally.counted
            self.ended = self.work.commit(self._row("committed", "", now_s, means))
        except CoveyError as error:
            return self.abandon(error.code, now_s)
        self.state, self.tally, self._later, self._given = RoundState.ENDED, self._later, Tally(), None
        self._hold(now_s)
        return []

    def _hold(self, now_s: float) -> None:
        """Keep the versions that devices may still download, however many commits come meanwhile."""
        oldest = self.work.number - self._asynchrony.max_staleness
        self._held = {n: (blob, at) for n, (blob, at) in self._held.items() if n >= oldest and at > now_s}
        with contextlib.suppress(CoveyError):  # what cannot be deleted now costs its room only
            self.storage.hold(self.population, {blob for blob, _ in self._held.values()})

    @property
    def _asynchrony(self) -> Asynchrony:
        found = self.work.asynchrony
        assert found is not None, "a buffer is of an asynchronous task"
        return found
