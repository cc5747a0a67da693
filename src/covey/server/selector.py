"""The selector: devices that checked in wait here, and a round draws its cohort from them (1902.01046, section 2.2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from covey.server.messages import (
    DeviceArrived,
    DeviceLeft,
    DevicesSelected,
    Envelope,
    Reply,
    WantDevices,
    WantNobody,
    coordinator_address,
    device_address,
)
from covey.wire.messages import ComeBack

__all__ = ["Chance", "Selector", "SelectorSettings"]


class Chance(Protocol):
    """The randomness of a selection: the operating system's in production, seeded in a simulation."""

    def randrange(self, stop: int, /) -> int:
        """Return an integer from 0 to ``stop`` - 1, uniformly."""
        ...

    def sample(self, population: Sequence[str], k: int) -> list[str]:
        """Return ``k`` distinct elements, uniformly."""
        ...


@dataclass(frozen=True, slots=True)
class SelectorSettings:
    """How devices wait.

    Attributes:
        poll_s: how long a check-in is held open before the device is told to come back.
        max_waiting: how many may wait; the next one is sent away at once.
    """

    poll_s: float = 25.0
    max_waiting: int = 10_000


class Selector:
    """One population's selector. Law: a ticket is answered exactly once.

    Devices that wait are a reservoir: when it is full, each newcomer takes the place of one of them with the chance
    that makes everybody who came equally likely to be there (1902.01046, section 2.2).
    """

    def __init__(self, population: str, settings: SelectorSettings, chance: Chance) -> None:
        """Begin with nobody waiting."""
        self._to = coordinator_address(population)
        self._settings = settings
        self._chance = chance
        self._waiting: dict[str, float] = {}
        self._num_came = 0  # since somebody was last selected: those whom the reservoir stands for
        self._wanted: WantDevices | None = None
        self._wanted_since_s = 0.0
        self.wish: WantDevices | None = None
        """The last wish, granted or not: how many devices are needed at a time."""

    @property
    def num_waiting(self) -> int:
        """How many devices wait."""
        return len(self._waiting)

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take DeviceArrived, DeviceLeft, WantDevices or WantNobody."""
        out = []
        match message:
            case DeviceArrived(ticket=ticket):
                out = self._arrived(ticket, now_s)
            case DeviceLeft(ticket=ticket):
                self._waiting.pop(ticket, None)
            case WantDevices():
                self._wanted, self._wanted_since_s, self.wish = message, now_s, message
            case WantNobody(attempt=attempt):
                if self._wanted is not None and self._wanted.attempt == attempt:
                    self._wanted = None
            case _:
                raise AssertionError(f"the selector does not take {type(message).__name__}")
        return out + self._select(now_s)

    def next_deadline_s(self) -> float | None:
        """Return when the next poll ends or a selection is due."""
        # Tickets arrive in order and wait equally long: the first is the first to go.
        deadlines = [next(iter(self._waiting.values()))] if self._waiting else []
        if (wanted := self._wanted) is not None and not wanted.held:
            deadlines.append(wanted.give_up_at_s)
            if len(self._waiting) >= wanted.at_least:
                deadlines.append(self._wanted_since_s + wanted.patience_s)
        return min(deadlines, default=None)

    def tick(self, now_s: float) -> list[Envelope]:
        """Select if it is time, then end polls that lasted long enough."""
        out = self._select(now_s)
        reason = "between_rounds" if self._wanted is not None and self._wanted.held else "not_selected"
        for ticket in [t for t, until_s in self._waiting.items() if until_s <= now_s]:
            del self._waiting[ticket]
            out.append(self._come_back(ticket, reason))
        return out

    def dismiss(self, reason: str) -> list[Envelope]:
        """Send everybody away, for example because the server stops."""
        out = [self._come_back(ticket, reason) for ticket in self._waiting]
        self._waiting.clear()
        return out

    def _arrived(self, ticket: str, now_s: float) -> list[Envelope]:
        if self._comes_too_early(now_s):
            return [self._come_back(ticket, "between_rounds")]
        self._num_came = max(self._num_came, len(self._waiting)) + 1
        out = []
        if len(self._waiting) >= self._settings.max_waiting:
            place = self._chance.randrange(self._num_came)
            if place >= self._settings.max_waiting:
                return [self._come_back(ticket, "not_selected")]
            displaced = list(self._waiting)[place]
            del self._waiting[displaced]
            out = [self._come_back(displaced, "not_selected")]
        self._waiting[ticket] = now_s + self._settings.poll_s
        return out

    def _comes_too_early(self, now_s: float) -> bool:
        """Whether the next round has devices enough, and begins only after this one's poll would have ended."""
        wanted = self._wanted
        if wanted is None or not wanted.held or wanted.expected_at_s is None:
            return False
        return len(self._waiting) >= wanted.count and wanted.expected_at_s > now_s + self._settings.poll_s

    def _select(self, now_s: float) -> list[Envelope]:
        wanted = self._wanted
        if wanted is None or wanted.held:
            return []
        patient = now_s < self._wanted_since_s + wanted.patience_s
        enough = len(self._waiting) >= (wanted.count if patient else wanted.at_least)
        if not enough and now_s < wanted.give_up_at_s:
            return []
        tickets: tuple[str, ...] = ()
        if enough:
            tickets = tuple(self._chance.sample(list(self._waiting), min(wanted.count, len(self._waiting))))
        for ticket in tickets:
            del self._waiting[ticket]
        self._wanted, self._num_came = None, len(self._waiting)
        return [Envelope(self._to, DevicesSelected(wanted.attempt, tickets))]

    def _come_back(self, ticket: str, reason: str) -> Envelope:
        return Envelope(device_address(ticket), Reply(ComeBack(retry_after_s=0.0, reason=reason)))
