"""One attempt at a round, from the wish for devices to the commit (1902.01046, sections 2.2 and 4.2).

::

    selecting -> reporting -> closing -> committed | abandoned(reason)

A round asks the selector for ``goal * over_selection`` devices, closes when ``goal`` of them have reported or, at the
deadline, when at least ``goal * min_fraction`` have; otherwise it is abandoned with a reason.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from covey.server.attempt import Attempt, RoundState, send_away
from covey.server.messages import (
    CloseShard,
    Counted,
    DevicesSelected,
    Envelope,
    Lost,
    OpenShard,
    Reply,
    ShardClosed,
    WantDevices,
    device_address,
    selector_address,
)
from covey.server.settings import RoundSettings
from covey.types.errors import CoveyError

__all__ = ["Round", "wish"]


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


@dataclass(slots=True)
class Round(Attempt):
    """An attempt whose devices are selected together. It ends exactly once."""

    deadline_s: float = 0.0
    reason: str = ""

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

    def next_deadline_s(self) -> float | None:
        """Return when its reports are due."""
        return self.deadline_s if self.state is RoundState.REPORTING else None

    def tick(self, now_s: float) -> list[Envelope]:
        """End it where its deadline has passed."""
        if self.state is not RoundState.REPORTING or now_s < self.deadline_s:
            return []
        if self.tally.counted >= self.settings.at_least:
            return self._close(now_s)
        return self.abandon("too_few_reports", now_s)

    def abandon(self, reason: str, now_s: float) -> list[Envelope]:
        """End it without a commit: its sums are overwritten, and its devices are told when they report."""
        self._end("abandoned", reason, now_s, {})
        return self._discard()

    def _select(self, now_s: float) -> list[Envelope]:
        self.state = RoundState.SELECTING
        return [wish(self.name, self.settings, self.population, now_s)]

    def _configure(self, tickets: tuple[str, ...], now_s: float) -> list[Envelope]:
        if self.state is not RoundState.SELECTING:
            return send_away(tickets)
        if not tickets:
            return self.abandon("too_few_devices", now_s)
        try:
            offer = self._offer(self.name)
        except CoveyError as error:  # a full disk, say
            return self.abandon(error.code, now_s) + send_away(tickets)
        sessions = [self.new_token() for _ in tickets]
        self.tally.selected += len(tickets)
        self._shards = tuple(range(min(self.num_shards, len(tickets))))
        self.deadline_s = now_s + self.settings.report_timeout_s
        self.state, self.reporting_since_s = RoundState.REPORTING, now_s
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
            # Some of a secure cohort may have dropped out after they were ready.
            self.tally.counted = sum(total.num_folded for total in self._sums)
            if not self.tally.counted and self.reason:
                return self.abandon(self.reason, now_s)
            total = self._opened()
            means = self.work.apply(self.phase, self.name, total)
            if not self.last_phase:
                self.phase, self._shards = self.phase + 1, ()
                self.tally.counted = self.tally.lost = self.tally.selected = 0
                return self._select(now_s)
            self._end("committed", "", now_s, means)
        except CoveyError as error:
            return self.abandon(error.code, now_s)
        return []

    def _end(self, status: str, reason: str, now_s: float, means: Mapping[str, float]) -> None:
        row = self._row(status, reason, now_s, means)
        self.ended = self.work.commit(row) if status == "committed" else row
        self.state = RoundState.ENDED
        # What was broadcast serves nobody any more; a leftover costs its room only.
        with contextlib.suppress(CoveyError):
            self.storage.forget(self._broadcasts)
