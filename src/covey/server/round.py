"""One attempt at a round, from the wish for devices to the commit (1902.01046, sections 2.2 and 4.2).

::

    selecting -> reporting -> closing -> committed | abandoned(reason)

A round asks the selector for ``goal * over_selection`` devices, closes when ``goal`` of them have reported or, at the
deadline, when at least ``goal * min_fraction`` have; otherwise it is abandoned with a reason.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from covey.server.messages import (
    CloseShard,
    Counted,
    DevicesSelected,
    DiscardShard,
    Envelope,
    Lost,
    OpenShard,
    Reply,
    ShardClosed,
    WantDevices,
    aggregator_address,
    device_address,
    public_seed,
    selector_address,
)
from covey.server.settings import RoundSettings
from covey.server.work import Work, checkpoint_ref
from covey.storage.interface import Storage
from covey.types.errors import CoveyError, LayoutError
from covey.types.segments import SegmentSum
from covey.types.tensors import pack_tensors
from covey.wire.messages import Assignment, BlobRef, ComeBack, RoundSummary

__all__ = ["Round", "RoundState", "send_away", "wish"]


class RoundState(Enum):
    """Where a round stands."""

    SELECTING = "selecting"
    REPORTING = "reporting"
    CLOSING = "closing"
    ENDED = "ended"


@dataclass(slots=True)
class _Tally:
    """What is counted over all phases of an attempt; ``selected``, ``counted`` and ``lost`` of its present phase."""

    selected: int = 0
    counted: int = 0
    lost: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


def wish(
    attempt: str,
    settings: RoundSettings,
    population: str,
    now_s: float,
    held: bool = False,
    expected_at_s: float | None = None,
) -> Envelope:
    """Return the wish for the devices of a round; see :class:`WantDevices`."""
    wanted = WantDevices(
        attempt,
        settings.num_selected,
        settings.goal,
        settings.patience_s,
        now_s + settings.selection_timeout_s,
        held,
        expected_at_s,
    )
    return Envelope(selector_address(population), wanted)


def send_away(tickets: tuple[str, ...]) -> list[Envelope]:
    """Answer devices that were selected for a round that is over."""
    answer = Reply(ComeBack(retry_after_s=0.0, reason="between_rounds"))
    return [Envelope(device_address(ticket), answer) for ticket in tickets]


@dataclass(slots=True)
class Round:
    """An attempt. Laws: every session is counted, lost, or still open; it ends exactly once, with a row that says how.

    Attributes:
        work: what it is for.
        storage: keeps what is broadcast, and the commit.
        name: of the attempt, unguessable: the round's public seed comes from it.
        started_s: when it began.
        new_token: makes the names of sessions.
        num_shards: how many aggregators share the cohort.
        ended: the row, once it has ended.
    """

    work: Work
    storage: Storage
    name: str
    started_s: float
    new_token: Callable[[], str]
    num_shards: int = 1
    state: RoundState = RoundState.SELECTING
    deadline_s: float = 0.0
    phase: int = 0
    tally: _Tally = field(default_factory=_Tally)
    reporting_since_s: float = 0.0
    reason: str = ""
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
        """Whose round it is."""
        return self.work.task.record.population

    @property
    def last_phase(self) -> bool:
        """Whether the next round begins after this phase."""
        return self.phase + 1 >= len(self.work.manifest.phases)

    def begin(self, now_s: float) -> list[Envelope]:
        """Ask for devices."""
        self.work.begin()
        return self._select(now_s)

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take DevicesSelected, Counted, Lost or ShardClosed of this attempt."""
        match message:
            case DevicesSelected(tickets=tickets):
                return self._configure(tickets, now_s)
            case Counted(bytes_up=num_bytes):
                self.tally.counted += 1
                self.tally.bytes_up += num_bytes
                return self._progress(now_s)
            case Lost():
                self.tally.lost += 1
                return self._progress(now_s)
            case ShardClosed(total=total, bytes_up=num_bytes, reason=reason):
                self._sums.append(total)
                self.tally.bytes_up += num_bytes
                self.reason = self.reason or reason
                return self._apply(now_s) if len(self._sums) == len(self._shards) else []
        raise AssertionError(f"the coordinator does not take {type(message).__name__}")

    def tick(self, now_s: float) -> list[Envelope]:
        """End it where its deadline has passed."""
        if self.state is not RoundState.REPORTING or now_s < self.deadline_s:
            return []
        if self.tally.counted >= self.settings.at_least:
            return self._close(now_s)
        return self.abandon("too_few_reports", now_s)

    def abandon(self, reason: str, now_s: float) -> list[Envelope]:
        """End it without a commit: its sums are overwritten, and its devices are told when they report."""
        out = [Envelope(self._aggregator(i), DiscardShard(self.name)) for i in self._shards]
        self._end("abandoned", reason, now_s, {})
        return out

    def _select(self, now_s: float) -> list[Envelope]:
        self.state = RoundState.SELECTING
        return [wish(self.name, self.settings, self.population, now_s)]

    def _configure(self, tickets: tuple[str, ...], now_s: float) -> list[Envelope]:
        if self.state is not RoundState.SELECTING:
            return send_away(tickets)
        if not tickets:
            return self.abandon("too_few_devices", now_s)
        try:
            checkpoint, shared = self._broadcast()
        except CoveyError as error:  # a full disk, say
            return self.abandon(error.code, now_s) + send_away(tickets)
        sessions = [self.new_token() for _ in tickets]
        self.tally.selected += len(tickets)
        self._shards = tuple(range(min(self.num_shards, len(tickets))))
        self.deadline_s = now_s + self.settings.report_timeout_s
        self.state, self.reporting_since_s = RoundState.REPORTING, now_s
        offer = self._offer(checkpoint, shared)
        # Aggregators first: a report must never overtake the message that makes room for it.
        out = [
            Envelope(
                self._aggregator(i),
                OpenShard(self.name, self.phase, tuple(sessions[i :: len(self._shards)]), offer),
            )
            for i in self._shards
        ]
        for ticket, session in zip(tickets, sessions, strict=True):
            out.append(Envelope(device_address(ticket), Reply(msgspec.structs.replace(offer, session=session))))
        return out

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

    def _offer(self, checkpoint: BlobRef, shared: BlobRef | None) -> Assignment:
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
            public_seed=public_seed(self.name),
            report_within_s=self.settings.report_timeout_s,
            task=record.name,
            kind=record.kind,
        )

    def _progress(self, now_s: float) -> list[Envelope]:
        if self.state is not RoundState.REPORTING:
            return []
        tally, settings = self.tally, self.settings
        still_open = tally.selected - tally.counted - tally.lost
        if tally.counted >= settings.goal or (still_open == 0 and tally.counted >= settings.at_least):
            return self._close(now_s)
        if tally.counted + still_open < settings.at_least:
            return self.abandon("too_many_lost", now_s)
        return []

    def _close(self, now_s: float) -> list[Envelope]:
        if self.work.manifest.privacy.mode == "secure":
            try:  # the aggregators take the masks off: what they will open is paid for first
                self.work.charge(self.phase, self.name)
            except CoveyError as error:
                return self.abandon(error.code, now_s)
        self.state = RoundState.CLOSING
        return [Envelope(self._aggregator(i), CloseShard(self.name)) for i in self._shards]

    def _apply(self, now_s: float) -> list[Envelope]:
        """Open the sum, apply it, and commit, or go on with the algorithm's next phase."""
        try:
            total, *others = self._sums
            for other in others:
                total.merge(other)
            self.tally.counted = total.num_folded  # some of a secure cohort may have dropped out after they were ready
            if not total.num_folded and self.reason:
                return self.abandon(self.reason, now_s)
            smallest = self.work.manifest.privacy.min_cohort
            if total.num_folded < smallest:
                raise LayoutError("sum", expected=f"at least {smallest} devices", got=str(total.num_folded))
            means = self.work.apply(self.phase, self.name, total)
            if not self.last_phase:
                self.phase, self._sums, self._shards = self.phase + 1, [], ()
                self.tally.counted = self.tally.lost = self.tally.selected = 0
                return self._select(now_s)
            self._end("committed", "", now_s, means)
        except CoveyError as error:
            return self.abandon(error.code, now_s)
        return []

    def _end(self, status: str, reason: str, now_s: float, means: Mapping[str, float]) -> None:
        tally, record = self.tally, self.work.task.record
        row = RoundSummary(
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
        self.ended = self.work.commit(row) if status == "committed" else row
        self.state = RoundState.ENDED
        with contextlib.suppress(
            CoveyError
        ):  # what it broadcast serves nobody any more; a leftover costs its room only
            self.storage.forget(self._broadcasts)

    def _aggregator(self, shard: int) -> str:
        return aggregator_address(self.population, self.work.task.name, shard)
