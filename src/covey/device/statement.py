"""The ledger in a person's words: what was trained for whom, what left, under which protection, and how it ended."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from covey.device.choices import Chosen
from covey.device.ledger import LedgerEntry

__all__ = [
    "Act",
    "SessionRecord",
    "Totals",
    "acts",
    "bytes_text",
    "choices_text",
    "protection",
    "sessions",
    "time_text",
    "totals",
]

_OPENING = ("session_started", "sending")
_OUTCOMES = {
    "session_started": "under way, or cut short",
    "sending": "sent; the answer is not known",
    "counted": "counted",
    "gave_up": "given up",
    "lost": "lost",
    "refused": "refused",
}
_ACTS = {
    "paused": "paused by you",
    "resumed": "resumed by you",
    "refused": "refused by you",
    "accepted": "accepted by you",
    "forgot": "forgotten at your word",
    "repaired": "ledger repaired",
    "quarantined": "a broken ledger was moved aside; this one is new",
}


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A device's part in one round, as the ledger tells it. The fields are those of the ledger's last word on it."""

    entry: LedgerEntry
    began_at_s: float
    sent: bool

    @property
    def outcome(self) -> str:
        """How it ended."""
        text = _OUTCOMES.get(self.entry.kind, self.entry.kind)
        if self.entry.kind == "lost" and self.sent:
            text = "sent, then lost"
        return f"{text}: {self.entry.reason}" if self.entry.reason else text

    @property
    def protection(self) -> str:
        """What kept the update from being looked at."""
        return protection(self.entry)

    @property
    def bytes_up(self) -> int:
        """Bytes that left, or may have left."""
        return self.entry.bytes_up if self.sent else 0


@dataclass(frozen=True, slots=True)
class Act:
    """Something that the person did, or that happened to the ledger itself."""

    at_s: float
    text: str
    detail: str


@dataclass(slots=True)
class Totals:
    """All sessions with one population."""

    population: str
    num_sessions: int = 0
    num_counted: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    last: SessionRecord | None = None


def sessions(entries: Iterable[LedgerEntry]) -> list[SessionRecord]:
    """Fold entries into one record for each session, in the order in which they began."""
    found: dict[tuple[str, str], SessionRecord] = {}
    for entry in entries:
        if not entry.session and entry.kind not in _OPENING:
            continue
        key = (entry.population, entry.session)
        before = found.get(key)
        began_at_s = before.began_at_s if before else entry.at_s
        sent = entry.kind == "sending" or bool(before and before.sent)
        found[key] = SessionRecord(entry, began_at_s, sent)
    return list(found.values())


def acts(entries: Iterable[LedgerEntry]) -> Iterator[Act]:
    """Yield what is no session."""
    for entry in entries:
        if entry.kind in _ACTS and not entry.session:
            what = entry.population or (f"{entry.num_examples} examples" if entry.num_examples else "")
            yield Act(entry.at_s, _ACTS[entry.kind], " · ".join(t for t in (what, entry.reason) if t))


def totals(records: Iterable[SessionRecord]) -> list[Totals]:
    """Add up sessions by population, in the order of their first session."""
    found: dict[str, Totals] = {}
    for record in records:
        total = found.setdefault(record.entry.population, Totals(record.entry.population))
        total.num_sessions += 1
        total.num_counted += record.entry.kind == "counted"
        total.bytes_down += record.entry.bytes_down
        total.bytes_up += record.bytes_up
        total.last = record
    return list(found.values())


def protection(entry: LedgerEntry) -> str:
    """Say in a few words what kept the update from being looked at."""
    if not entry.mode:
        return "nothing left"
    parts = [
        f"masked: only a sum over at least {entry.min_cohort} devices can be opened"
        if entry.mode == "secure"
        else f"not masked: the server adds it up with at least {entry.min_cohort - 1} others, but could look at it"
    ]
    if entry.epsilon is not None:
        delta = f", delta {entry.delta:.2g}" if entry.delta is not None else ""
        parts.append(f"noise: epsilon {entry.epsilon:g}{delta}")
    return "; ".join(parts)


def choices_text(chosen: Chosen | None, now_s: float) -> str:
    """Say whether the person paused the device; None: the choices cannot be read."""
    if chosen is None:
        return "paused, because your choices cannot be read; resuming begins afresh"
    if now_s >= chosen.paused_until_s:
        return "not paused"
    return f"paused until {'you resume' if chosen.paused_until_s == math.inf else time_text(chosen.paused_until_s)}"


def bytes_text(num_bytes: float) -> str:
    """Return a number of bytes in the largest unit that leaves at least 1: powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


def time_text(at_s: float) -> str:
    """Return a local time to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))
