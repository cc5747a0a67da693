"""The coordinator: one per population. It opens rounds, watches their deadlines, and commits (1902.01046, section 4.2).

::

    selecting -> reporting -> closing -> committed | abandoned(reason)

A round asks the selector for ``goal * over_selection`` devices, closes when ``goal`` of them have reported or, at the
deadline, when at least ``goal * min_fraction`` have; otherwise it is abandoned with a reason. Whatever happens, the
next round starts from the last committed checkpoint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.registry import server_half
from covey.plans.manifest import Manifest
from covey.privacy.randomness import Randomness
from covey.server.messages import (
    BytesServed,
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
from covey.server.opening import opened_reals
from covey.server.private import PrivateSums
from covey.server.settings import RoundSettings, check_settings
from covey.storage.interface import PopulationRecord, Storage, decode_named, encode_named
from covey.types.errors import BudgetExhaustedError, CoveyError, LayoutError
from covey.types.segments import SegmentSum
from covey.types.tensors import pack_tensors, sha256_hex, unpack_tensors
from covey.wire.messages import Assignment, BlobRef, RoundSummary

__all__ = ["Coordinator", "CoordinatorState", "RoundSettings"]


class CoordinatorState(Enum):
    """Where the population's present round stands."""

    PAUSED = "paused"
    BETWEEN_ROUNDS = "between_rounds"
    SELECTING = "selecting"
    REPORTING = "reporting"
    CLOSING = "closing"


@dataclass(slots=True)
class _Attempt:
    """One attempt at a round."""

    name: str
    started_s: float
    deadline_s: float
    phase: int = 0
    selected: int = 0
    counted: int = 0
    lost: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    shards: tuple[int, ...] = ()
    sums: list[SegmentSum] = field(default_factory=list)
    reason: str = ""


class Coordinator:
    """One population's rounds. Law: every session is counted, lost, or still open, and a round ends exactly once."""

    def __init__(
        self,
        record: PopulationRecord,
        manifest: Manifest,
        storage: Storage,
        settings: RoundSettings,
        *,
        new_token: Callable[[], str],
        num_shards: int = 1,
        noise: Randomness | None = None,
        simulated: bool = False,
    ) -> None:
        """Resume at the last committed round; :meth:`start` begins.

        Args:
            record: where the population stands in ``storage``.
            manifest: its plan's.
            storage: where rounds are committed.
            settings: how a round goes.
            new_token: unguessable names for attempts and sessions; seeded only in a simulation.
            num_shards: how many aggregators share a cohort.
            noise: for plans with differential privacy; outside a simulation from a seed of the operating system.
            simulated: whether seeded noise is accepted.

        Raises:
            UsageError: settings that cannot work with the plan.
            PrivacyError: noise that cannot be; BudgetExhaustedError where the population has spent what it may.
        """
        check_settings(settings, manifest)
        self.population = record.population
        self.round = record.round
        self.state = CoordinatorState.PAUSED
        self.summaries = len(storage.rounds(record.population))
        self._record = record
        self._manifest = manifest
        self._storage = storage
        self._new_token = new_token
        self._num_shards = num_shards
        self._algorithm = server_half(manifest.algorithm.name, manifest.algorithm.settings)
        params = unpack_tensors(manifest.params, storage.blob(record.checkpoint))
        self._settings = settings
        first = self._algorithm.init(params)
        extra = decode_named(storage.blob(record.extra)) if record.extra else first.extra
        self._private: PrivateSums | None = None
        if manifest.privacy.noise is not None:
            self._private = PrivateSums(record, manifest, noise, simulated=simulated)
            extra = self._private.begin(storage, settings.hyper, extra)
        self._server_state = ServerState(params, extra)
        self._next_state = self._server_state
        self._plan = BlobRef(
            sha256=record.plan, num_bytes=len(storage.blob(record.plan)), path=f"/v1/plans/{record.plan}"
        )
        self._checkpoint = _checkpoint_ref(storage.blob(record.checkpoint))
        self._attempt: _Attempt | None = None
        self._resume_at_s = 0.0

    @property
    def plan(self) -> BlobRef:
        """The plan that devices execute."""
        return self._plan

    @property
    def checkpoint(self) -> BlobRef:
        """The last committed checkpoint."""
        return self._checkpoint

    @property
    def finished(self) -> bool:
        """Whether the wanted number of rounds is committed."""
        return 0 < self._settings.max_rounds <= self.round

    def start(self, now_s: float) -> list[Envelope]:
        """Begin the first round, unless all wanted rounds are already committed."""
        if self.finished:
            return []
        self.state, self._resume_at_s = CoordinatorState.BETWEEN_ROUNDS, now_s
        return self._begin(now_s)

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take DevicesSelected, Counted, Lost, ShardClosed or BytesServed."""
        attempt = self._attempt
        if isinstance(message, BytesServed):
            if attempt is not None:
                attempt.bytes_down += message.num_bytes
            return []
        if attempt is None or message.attempt != attempt.name:
            return []  # of a round that ended
        match message:
            case DevicesSelected(tickets=tickets):
                return self._configure(attempt, tickets, now_s)
            case Counted(bytes_up=num_bytes):
                attempt.counted += 1
                attempt.bytes_up += num_bytes
                return self._progress(attempt, now_s)
            case Lost():
                attempt.lost += 1
                return self._progress(attempt, now_s)
            case ShardClosed(total=total, bytes_up=num_bytes, reason=reason):
                attempt.sums.append(total)
                attempt.bytes_up += num_bytes
                attempt.reason = attempt.reason or reason
                return self._apply(attempt, now_s) if len(attempt.sums) == len(attempt.shards) else []
        raise AssertionError(f"the coordinator does not take {type(message).__name__}")

    def next_deadline_s(self) -> float | None:
        """Return when a round begins or its reports are due."""
        if self.state is CoordinatorState.BETWEEN_ROUNDS:
            return self._resume_at_s
        if self.state is CoordinatorState.REPORTING:
            assert self._attempt is not None
            return self._attempt.deadline_s
        return None

    def tick(self, now_s: float) -> list[Envelope]:
        """Begin a round, or end one whose deadline has passed."""
        if self.state is CoordinatorState.BETWEEN_ROUNDS and now_s >= self._resume_at_s:
            return self._begin(now_s)
        attempt = self._attempt
        if self.state is not CoordinatorState.REPORTING or attempt is None or now_s < attempt.deadline_s:
            return []
        if attempt.counted >= self._settings.at_least:
            return self._close(attempt, now_s)
        return self._abandon(attempt, "too_few_reports", now_s)

    def _begin(self, now_s: float) -> list[Envelope]:
        if self._private is not None and not self._private.affordable(self._storage):
            # Nobody trains for a sum that may not be opened; the last row says why nothing follows.
            row = self._summary(_Attempt("", now_s, 0.0), "abandoned", BudgetExhaustedError.code, now_s, {}, "")
            self._storage.add_summary(self.population, row)
            self.summaries += 1
            self._attempt, self.state = None, CoordinatorState.PAUSED
            return []
        self._next_state = self._server_state
        return self._select(_Attempt(self._new_token(), now_s, 0.0), now_s)

    def _select(self, attempt: _Attempt, now_s: float) -> list[Envelope]:
        settings = self._settings
        self._attempt, self.state = attempt, CoordinatorState.SELECTING
        wanted = WantDevices(
            attempt.name,
            settings.num_selected,
            settings.goal,
            settings.patience_s,
            now_s + settings.selection_timeout_s,
        )
        return [Envelope(selector_address(self.population), wanted)]

    def _configure(self, attempt: _Attempt, tickets: tuple[str, ...], now_s: float) -> list[Envelope]:
        if not tickets:
            return self._abandon(attempt, "too_few_devices", now_s)
        shared = self._algorithm.phases[attempt.phase].shared(self._next_state)
        shared_ref = None
        if shared:
            data = pack_tensors(shared, self._manifest.phases[attempt.phase].shared)
            shared_ref = _checkpoint_ref(data)
            self._storage.put_blob(data)
        sessions = [self._new_token() for _ in tickets]
        attempt.selected += len(tickets)
        attempt.shards = tuple(range(min(self._num_shards, len(tickets))))
        attempt.deadline_s = now_s + self._settings.report_timeout_s
        self.state = CoordinatorState.REPORTING
        offer = Assignment(
            session="",
            round=self.round + 1,
            phase=attempt.phase,
            plan=self._plan,
            signature=self._record.signature,
            checkpoint=self._checkpoint,
            shared=shared_ref,
            hyper=dict(self._private.hyper(self._settings.hyper) if self._private else self._settings.hyper),
            mode=self._manifest.privacy.mode,
            public_seed=public_seed(attempt.name),
            report_within_s=self._settings.report_timeout_s,
        )
        # Aggregators first: a report must never overtake the message that makes room for it.
        out = [
            Envelope(
                aggregator_address(self.population, i),
                OpenShard(attempt.name, attempt.phase, tuple(sessions[i :: len(attempt.shards)]), offer),
            )
            for i in attempt.shards
        ]
        for ticket, session in zip(tickets, sessions, strict=True):
            out.append(Envelope(device_address(ticket), Reply(msgspec.structs.replace(offer, session=session))))
        return out

    def _progress(self, attempt: _Attempt, now_s: float) -> list[Envelope]:
        if self.state is not CoordinatorState.REPORTING:
            return []
        still_open = attempt.selected - attempt.counted - attempt.lost
        if attempt.counted >= self._settings.goal or (still_open == 0 and attempt.counted >= self._settings.at_least):
            return self._close(attempt, now_s)
        if attempt.counted + still_open < self._settings.at_least:
            return self._abandon(attempt, "too_many_lost", now_s)
        return []

    def _close(self, attempt: _Attempt, now_s: float) -> list[Envelope]:
        if self._private is not None and self._manifest.privacy.mode == "secure":
            try:  # the aggregators take the masks off: what they will open is paid for first
                self._private.charge(self._storage, attempt.phase, self.round + 1, attempt.name)
            except CoveyError as error:
                return self._abandon(attempt, error.code, now_s)
        self.state = CoordinatorState.CLOSING
        return [Envelope(aggregator_address(self.population, i), CloseShard(attempt.name)) for i in attempt.shards]

    def _apply(self, attempt: _Attempt, now_s: float) -> list[Envelope]:
        """Open the sum, apply it, and commit, or go on with the algorithm's next phase."""
        try:
            total, *others = attempt.sums
            for other in others:
                total.merge(other)
            attempt.counted = total.num_folded  # of a secure cohort, some may have dropped out after they were ready
            if not total.num_folded and attempt.reason:
                return self._abandon(attempt, attempt.reason, now_s)
            smallest = self._manifest.privacy.min_cohort
            if total.num_folded < smallest:
                raise LayoutError("sum", expected=f"at least {smallest} devices", got=str(total.num_folded))
            aggregate = self._open(total, attempt)
            self._next_state = self._algorithm.phases[attempt.phase].apply(self._next_state, aggregate)
            if attempt.phase + 1 < len(self._algorithm.phases):
                attempt.phase, attempt.sums = attempt.phase + 1, []
                attempt.counted = attempt.lost = attempt.selected = 0
                return self._select(attempt, now_s)
            self._commit(attempt, aggregate.means(), now_s)
        except CoveyError as error:
            return self._abandon(attempt, error.code, now_s)
        return self._next_round(now_s)

    def _open(self, total: SegmentSum, attempt: _Attempt) -> Aggregate:
        if self._private is not None:
            if self._manifest.privacy.mode == "secure":  # charged when the shards were closed
                return self._private.read(total, attempt.phase, attempt.name)
            return self._private.open(self._storage, total, attempt.phase, self.round + 1, attempt.name)
        reals = opened_reals(self._manifest, attempt.phase, total, public_seed(attempt.name))
        aggregate = Aggregate.opened(total, self._manifest.phases[attempt.phase], self._manifest.metrics, reals)
        total.clear()
        return aggregate

    def _commit(self, attempt: _Attempt, means: Mapping[str, float], now_s: float) -> None:
        params = pack_tensors(self._next_state.params, self._manifest.params)
        checkpoint = _checkpoint_ref(params)
        summary = self._summary(attempt, "committed", "", now_s, means, checkpoint.sha256)
        extra = self._next_state.extra if self._private is None else self._private.state(self._next_state.extra)
        self._storage.commit_round(self.population, summary, params, encode_named(extra))
        self._server_state, self._checkpoint = self._next_state, checkpoint
        self.round += 1
        self.summaries += 1

    def _abandon(self, attempt: _Attempt, reason: str, now_s: float) -> list[Envelope]:
        out = [Envelope(aggregator_address(self.population, i), DiscardShard(attempt.name)) for i in attempt.shards]
        summary = self._summary(attempt, "abandoned", reason, now_s, {}, "")
        try:
            self._storage.add_summary(self.population, summary)
            self.summaries += 1
        except CoveyError:
            pass  # a full disk is often the very reason; the round's row is the lesser loss, and serving goes on
        return out + self._next_round(now_s, failed=True)

    def _next_round(self, now_s: float, *, failed: bool = False) -> list[Envelope]:
        self._attempt = None
        if self.finished:
            self.state = CoordinatorState.PAUSED
            return []
        pause_s = max(self._settings.pause_s, _PAUSE_AFTER_FAILURE_S if failed else 0.0)
        self.state, self._resume_at_s = CoordinatorState.BETWEEN_ROUNDS, now_s + pause_s
        return [] if pause_s else self._begin(now_s)

    def _summary(
        self,
        attempt: _Attempt,
        status: str,
        reason: str,
        now_s: float,
        means: Mapping[str, float],
        checkpoint: str,
    ) -> RoundSummary:
        return RoundSummary(
            round=self.round + 1,
            status=status,
            reason=reason,
            selected=attempt.selected,
            reported=attempt.counted,
            lost=attempt.selected - attempt.counted,
            seconds=now_s - attempt.started_s,
            bytes_down=attempt.bytes_down,
            bytes_up=attempt.bytes_up,
            metrics=dict(means),
            checkpoint=checkpoint,
        )


_PAUSE_AFTER_FAILURE_S = 1.0
"""A round that fails at once must not be tried again in a tight loop."""


def _checkpoint_ref(data: bytes) -> BlobRef:
    name = sha256_hex(data)
    return BlobRef(sha256=name, num_bytes=len(data), path=f"/v1/checkpoints/{name}")
