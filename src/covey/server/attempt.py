"""What every attempt at a version of the model has in common.

There are two kinds: a :class:`covey.server.round.Round`, whose devices are selected together, and a
:class:`covey.server.buffer.Buffer`, whose devices come and go.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from covey.server.messages import (
    DiscardShard,
    Envelope,
    Reply,
    aggregator_address,
    device_address,
    public_seed,
)
from covey.server.settings import RoundSettings
from covey.server.tasks import Task
from covey.server.work import Work, checkpoint_ref
from covey.storage.interface import Storage
from covey.types.errors import LayoutError
from covey.types.segments import SegmentSum
from covey.types.tensors import pack_tensors
from covey.wire.messages import Assignment, BlobRef, ComeBack, RoundSummary

__all__ = ["Attempt", "RoundState", "Tally", "empty_row", "send_away"]


class RoundState(Enum):
    """Where an attempt stands; only a buffer is ever set aside."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    CLOSING = "closing"
    ASIDE = "aside"
    ENDED = "ended"


@dataclass(slots=True)
class Tally:
    """What is counted: ``selected`` sessions, those that were ``counted`` or ``lost``, payload bytes.

    ``staleness`` is the sum over those that were counted.
    """

    selected: int = 0
    counted: int = 0
    lost: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    staleness: int = 0


def send_away(tickets: tuple[str, ...]) -> list[Envelope]:
    """Answer devices that were selected for a round that is over."""
    answer = Reply(ComeBack(retry_after_s=0.0, reason="between_rounds"))
    return [Envelope(device_address(ticket), answer) for ticket in tickets]


def empty_row(task: Task, version: int, status: str, reason: str, checkpoint: str = "") -> RoundSummary:
    """Return the row of what no device took part in: ``version`` is the model's."""
    return RoundSummary(
        round=version + 1 if task.trains else task.record.rounds + 1,
        status=status,
        reason=reason,
        selected=0,
        reported=0,
        lost=0,
        seconds=0.0,
        bytes_down=0,
        bytes_up=0,
        checkpoint=checkpoint,
        task=task.name,
        kind=task.record.kind,
    )


@dataclass(slots=True)
class Attempt(abc.ABC):
    """An attempt. Laws: every session is counted, lost, or still open; what began ends with a row that says how.

    Attributes:
        work: what it is for.
        storage: keeps what is broadcast, and the commit.
        name: of the attempt, unguessable: public seeds come from it.
        started_s: when it began.
        new_token: makes the names of sessions.
        num_shards: how many aggregators share the devices.
        ended: the row, once it has ended.
    """

    work: Work
    storage: Storage
    name: str
    started_s: float
    new_token: Callable[[], str]
    num_shards: int = 1
    state: RoundState = RoundState.SELECTING
    phase: int = 0
    tally: Tally = field(default_factory=Tally)
    reporting_since_s: float = 0.0
    ended: RoundSummary | None = None
    _shards: tuple[int, ...] = ()
    _sums: list[SegmentSum] = field(default_factory=list)
    _broadcasts: set[str] = field(default_factory=set)

    @property
    def settings(self) -> RoundSettings:
        """How it goes."""
        return self.work.task.settings.round

    @property
    def population(self) -> str:
        """Whose it is."""
        return self.work.task.record.population

    @property
    @abc.abstractmethod
    def last_phase(self) -> bool:
        """Whether the next attempt begins after this phase."""

    @abc.abstractmethod
    def begin(self, now_s: float) -> list[Envelope]:
        """Ask for devices."""

    @abc.abstractmethod
    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take DevicesSelected, Counted, Lost or ShardClosed of this attempt."""

    @abc.abstractmethod
    def next_deadline_s(self) -> float | None:
        """Return when :meth:`tick` has something to do."""

    @abc.abstractmethod
    def tick(self, now_s: float) -> list[Envelope]:
        """Do what is due."""

    @abc.abstractmethod
    def abandon(self, reason: str, now_s: float) -> list[Envelope]:
        """End it without a commit: its sums are overwritten, and its devices are told when they report."""

    def _discard(self) -> list[Envelope]:
        return [Envelope(self._aggregator(i), DiscardShard(self.name)) for i in self._shards]

    def _broadcast(self) -> tuple[BlobRef, BlobRef | None]:
        """Store what devices download besides the plan; return where the checkpoint is, and what is shared."""
        encoded = self.work.download()
        checkpoint = self.work.checkpoint if encoded is None else self._published(encoded)
        shared = self.work.shared(self.phase)
        if not shared:
            return checkpoint, None
        return checkpoint, self._published(pack_tensors(shared, self.work.manifest.phases[self.phase].shared))

    def _published(self, data: bytes) -> BlobRef:
        self._broadcasts.add(self.storage.put_blob(data))
        return checkpoint_ref(data)

    def _offer(self, seed_of: str) -> Assignment:
        """Return what devices are assigned, but for their session. Raises CoveyError: a full disk, say."""
        checkpoint, shared = self._broadcast()
        record = self.work.task.record
        return Assignment(
            session="",
            round=self.work.number,
            phase=self.phase,
            plan=self.work.plan,
            signature=record.signature,
            checkpoint=checkpoint,
            shared=shared,
            hyper=self.work.hyper,
            mode=self.work.manifest.privacy.mode,
            public_seed=public_seed(seed_of),
            report_within_s=self.settings.report_timeout_s,
            task=record.name,
            kind=record.kind,
        )

    def _opened(self) -> SegmentSum:
        """Return the sum of all shards.

        Raises:
            LayoutError: fewer devices than the plan's smallest cohort.
        """
        total, *others = self._sums
        for other in others:
            total.merge(other)
        self._sums = []
        smallest = self.work.manifest.privacy.min_cohort
        if total.num_folded < smallest:
            raise LayoutError("sum", expected=f"at least {smallest} devices", got=str(total.num_folded))
        return total

    def _row(self, status: str, reason: str, now_s: float, means: Mapping[str, float]) -> RoundSummary:
        tally, record = self.tally, self.work.task.record
        return RoundSummary(
            round=self.work.number,
            status=status,
            reason=reason,
            selected=tally.selected,
            reported=tally.counted,
            lost=tally.selected - tally.counted,
            seconds=now_s - self.started_s,
            bytes_down=tally.bytes_down,
            bytes_up=tally.bytes_up,
            metrics=dict(means),
            task=record.name,
            kind=record.kind,
        )

    def _aggregator(self, shard: int) -> str:
        return aggregator_address(self.population, self.work.task.name, shard)
