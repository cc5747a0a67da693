"""A population's check-ins over days: who comes when, and which rounds find their devices. No training, only time.

Devices are free and busy in turn: a Markov process whose stationary share of free devices swings over the day. One that
is told to come back while it is busy comes when it is next free. Between two check-ins everything about a device can be
drawn at once and exactly, so a million devices are a million numbers: the times of their next check-ins.
"""

import math
import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey.server.pace import DAY_S, Chance

__all__ = ["Activity", "CheckIns", "CheckInSettings", "FixedRetry", "Steering"]

_STEP_S = 5.0


class Steering(Protocol):
    """What decides when a device comes back: :class:`covey.server.pace.PaceSteering`, or something to compare with."""

    def observe_checkin(self, now_s: float) -> None:
        """Note that a device checked in."""
        ...

    def observe_round(self, now_s: float, *, wanted: int, at_least: int, lasts_s: float) -> None:
        """Note that a round has its devices."""
        ...

    def reconnect_after_s(self, now_s: float, chance: Chance) -> float:
        """Return when a device shall check in again."""
        ...


class FixedRetry:
    """Every device is told the same, as a server without pace steering does; devices add a tenth by chance."""

    def __init__(self, retry_s: float) -> None:
        """Tell everybody ``retry_s``."""
        self._retry_s = retry_s

    def observe_checkin(self, now_s: float) -> None:
        """Learn nothing."""

    def observe_round(self, now_s: float, *, wanted: int, at_least: int, lasts_s: float) -> None:
        """Learn nothing."""

    def reconnect_after_s(self, now_s: float, chance: Chance) -> float:
        """See :class:`Steering`."""
        return self._retry_s * (1 + 0.1 * chance.random())


class Activity:
    """The share of devices that are free: ``mean * (1 + swing * cos)``, most of them at ``peak_s`` of each day.

    A device changes between free and busy with the relaxation time ``lasts_s``. For the share to be exactly the above,
    devices become free at the rate ``(p + lasts_s * p') / lasts_s`` and busy at ``1 / lasts_s`` less that.
    """

    def __init__(self, *, mean: float, highest_to_lowest: float, lasts_s: float = 3600.0, peak_s: float = 0.0) -> None:
        """Raise ValueError where no such process exists."""
        self._mean, self._lasts_s, self._peak_s = mean, lasts_s, peak_s
        self._swing = (highest_to_lowest - 1) / (highest_to_lowest + 1)
        steepest = self._swing * math.hypot(1.0, lasts_s * 2 * math.pi / DAY_S)
        if mean * (1 - steepest) <= 0 or mean * (1 + steepest) >= 1:
            raise ValueError("no process has this share: a smaller mean, a smaller swing or a shorter time")
        self._grid_s = np.linspace(0.0, DAY_S, 1441)
        self._table = self._hazard(self._grid_s)

    def share(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of devices that are free."""
        return self._mean * (1 + self._swing * np.cos(2 * math.pi * (at_s - self._peak_s) / DAY_S))

    def next_free_s(
        self, told_s: NDArray[np.float64], due_s: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return when devices that were free at ``told_s`` are first free at or after ``due_s``."""
        still = (1 - self.share(told_s)) * np.exp(-(due_s - told_s) / self._lasts_s)
        free = rng.random(due_s.shape) < self.share(due_s) + still
        return np.where(free, due_s, self.becomes_free_s(due_s, rng))

    def becomes_free_s(self, busy_s: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Return when devices that are busy at ``busy_s`` become free."""
        days, within = np.divmod(busy_s, DAY_S)
        reached = np.interp(within, self._grid_s, self._table) + rng.exponential(size=busy_s.shape)
        more, rest = np.divmod(reached - self._table[0], self._table[-1] - self._table[0])
        free_s: NDArray[np.float64] = (days + more) * DAY_S + np.interp(
            rest + self._table[0], self._table, self._grid_s
        )
        return free_s

    def _hazard(self, at_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the integral of the rate of becoming free."""
        angle = 2 * math.pi * (at_s - self._peak_s) / DAY_S
        grown = at_s + self._swing * (np.sin(angle) * DAY_S / (2 * math.pi) + self._lasts_s * np.cos(angle))
        return self._mean / self._lasts_s * grown


@dataclass(frozen=True, slots=True)
class CheckInSettings:
    """What is simulated.

    Attributes:
        num_devices: of the population.
        wanted: how many a round selects; it begins when so many wait at once.
        poll_s: how long a device waits before it is sent away.
        round_s: how long a round takes once it has its devices.
        arrive_s: over how long the devices come for the first time.
        away_s: from when to when the server cannot be reached.
    """

    num_devices: int
    wanted: int
    poll_s: float = 25.0
    round_s: float = 120.0
    arrive_s: float = 6 * 3600.0
    away_s: tuple[float, float] = (math.inf, math.inf)


@dataclass(slots=True)
class CheckIns:
    """Runs a population against a steering, and keeps counts.

    Attributes:
        per_minute: how many checked in, by minute.
        waited_s: of every round, how long it waited for its devices.
        began_s: when each of them had its devices.
    """

    settings: CheckInSettings
    activity: Activity
    steering: Steering
    rng: np.random.Generator
    chance: random.Random
    per_minute: list[int] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)
    began_s: list[float] = field(default_factory=list)
    _due: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _back: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _waiting: deque[float] = field(default_factory=deque)
    _since_s: float = 0.0
    _busy_until_s: float = 0.0

    def run(self, days: float) -> None:
        """Let so many days pass, from the first check-in on."""
        first = self.rng.uniform(0, self.settings.arrive_s, self.settings.num_devices)
        free = self.rng.random(first.shape) < self.activity.share(first)
        self._plan(np.where(free, first, self.activity.becomes_free_s(first, self.rng)))
        self.per_minute = [0] * math.ceil(days * 1440)
        for step in range(math.ceil(days * DAY_S / _STEP_S)):
            now_s = (step + 1) * _STEP_S
            self._arrive(sorted(self._due.pop(step, ())), now_s)
            self._select(now_s)
            self._leave(now_s, self._back.pop(step, []))

    def _arrive(self, times: list[float], now_s: float) -> None:
        begin, end = self.settings.away_s
        if begin <= now_s < end:  # a device that reaches nobody tries again within a minute
            back = end + self.rng.uniform(0.0, 60.0, len(times))
            self._plan(self.activity.next_free_s(np.asarray(times), back, self.rng))
            return
        for at_s in times:
            self.per_minute[int(at_s // 60)] += 1
            self.steering.observe_checkin(at_s)
            self._waiting.append(at_s)

    def _select(self, now_s: float) -> None:
        """Begin a round as soon as enough devices wait; a round takes its time, and its devices come again."""
        settings = self.settings
        if now_s < self._busy_until_s or len(self._waiting) < settings.wanted:
            return
        chosen = set(self.rng.choice(len(self._waiting), settings.wanted, replace=False).tolist())
        self._waiting = deque(t for i, t in enumerate(self._waiting) if i not in chosen)
        lasts_s = settings.round_s * float(self.rng.lognormal(0.0, 0.1))
        self.waited_s.append(now_s - max(self._since_s, self._busy_until_s))
        self.began_s.append(now_s)
        self._busy_until_s = now_s + lasts_s
        told = {"wanted": settings.wanted, "at_least": settings.wanted}
        self.steering.observe_round(now_s, **told, lasts_s=settings.round_s)
        _sort_in(self._back, now_s + lasts_s * self.rng.uniform(0.5, 1.0, settings.wanted))

    def _leave(self, now_s: float, gone: list[float]) -> None:
        """Tell those who waited long enough, and those whose round is over, when to come back."""
        while self._waiting and self._waiting[0] + self.settings.poll_s <= now_s:
            gone.append(self._waiting.popleft() + self.settings.poll_s)
        if gone:
            told_s = np.sort(np.asarray(gone))
            after_s = np.asarray([self.steering.reconnect_after_s(t, self.chance) for t in told_s.tolist()])
            self._plan(self.activity.next_free_s(told_s, told_s + after_s, self.rng))

    def _plan(self, at_s: NDArray[np.float64]) -> None:
        _sort_in(self._due, at_s)


def _sort_in(steps: dict[int, list[float]], at_s: NDArray[np.float64]) -> None:
    for step, t in zip((at_s // _STEP_S).astype(int).tolist(), at_s.tolist(), strict=True):
        steps[step].append(t)
