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
    coordinator_address,
    device_address,
)
from covey.wire.messages import ComeBack

__all__ = ["Chance", "Selector", "SelectorSettings"]


class Chance(Protocol):
    """The randomness of a selection: the operating system's in production, seeded in a simulation."""

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
    """One population's selector. Law: a ticket is answered exactly once."""

    def __init__(self, population: str, settings: SelectorSettings, chance: Chance) -> None:
        """Begin with nobody waiting."""
        self._to = coordinator_address(population)
        self._settings = settings
        self._chance = chance
        self._waiting: dict[str, float] = {}
        self._wanted: WantDevices | None = None
        self._wanted_since_s = 0.0

    @property
    def num_waiting(self) -> int:
        """How many devices wait."""
        return len(self._waiting)

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take DeviceArrived, DeviceLeft or WantDevices."""
        match message:
            case DeviceArrived(ticket=ticket):
                if len(self._waiting) >= self._settings.max_waiting:
                    return [self._come_back(ticket, "not_selected")]
                self._waiting[ticket] = now_s + self._settings.poll_s
            case DeviceLeft(ticket=ticket):
                self._waiting.pop(ticket, None)
            case WantDevices():
                self._wanted, self._wanted_since_s = message, now_s
            case _:
                raise AssertionError(f"the selector does not take {type(message).__name__}")
        return self._select(now_s)

    def next_deadline_s(self) -> float | None:
        """Return when the next poll ends or a selection is due."""
        # Tickets arrive in order and wait equally long: the first is the first to go.
        deadlines = [next(iter(self._waiting.values()))] if self._waiting else []
        if (wanted := self._wanted) is not None:
            deadlines.append(wanted.give_up_at_s)
            if len(self._waiting) >= wanted.at_least:
                deadlines.append(self._wanted_since_s + wanted.patience_s)
        return min(deadlines, default=None)

    def tick(self, now_s: float) -> list[Envelope]:
        """Select if it is time, then end polls that lasted long enough."""
        out = self._select(now_s)
        for ticket in [t for t, until_s in self._waiting.items() if until_s <= now_s]:
            del self._waiting[ticket]
            out.append(self._come_back(ticket, "not_selected"))
        return out

    def dismiss(self, reason: str) -> list[Envelope]:
        """Send everybody away, for example because the server stops."""
        out = [self._come_back(ticket, reason) for ticket in self._waiting]
        self._waiting.clear()
        return out

    def _select(self, now_s: float) -> list[Envelope]:
        wanted = self._wanted
        if wanted is None:
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
        self._wanted = None
        return [Envelope(self._to, DevicesSelected(wanted.attempt, tickets))]

    def _come_back(self, ticket: str, reason: str) -> Envelope:
        return Envelope(device_address(ticket), Reply(ComeBack(retry_after_s=0.0, reason=reason)))
