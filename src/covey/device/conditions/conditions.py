"""All conditions together: asked often, read seldom, and steady where a source flaps."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from covey.device.conditions.source import Reading, Source
from covey.plans.manifest import Eligibility
from covey.types.clock import DeviceClock

__all__ = ["CHOSEN_BY_PLANS", "Conditions", "NAMES", "Verdict"]

CHOSEN_BY_PLANS = ("idle", "charging", "unmetered")
"""The conditions that a plan's eligibility terms may do without."""

NAMES = (*CHOSEN_BY_PLANS, "battery", "storage", "memory")

SETTLE_S = 10.0
"""For how long a condition that had lapsed must hold without a break before it counts again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all conditions hold; else the names of those that lapsed, and for each what to do."""

    holds: bool
    lapsed: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


@dataclass(slots=True)
class _Watched:
    source: Source
    read_at_s: float = 0.0
    reading: Reading | None = None
    steady_from_s: float = 0.0

    def look(self, now_s: float, settle_s: float) -> Reading:
        if self.reading is None or now_s - self.read_at_s >= self.source.max_age_s:
            before, self.reading, self.read_at_s = self.reading, self.source.read(), now_s
            if self.reading.holds and before is not None and not before.holds:
                self.steady_from_s = now_s + settle_s
        if self.reading.holds and now_s < self.steady_from_s:
            return Reading(False, f"holds again; counts in {self.steady_from_s - now_s:.0f} s")
        return self.reading


class Conditions:
    """The conditions of one device. Safe to share between threads and populations.

    Law: a lapse counts at once; what had lapsed counts again only after ``settle_s`` seconds without a lapse, so that a
    loose plug, flapping ten times a second, costs one session and not thousands.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        clock: DeviceClock,
        *,
        settle_s: float = SETTLE_S,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Take the sources.

        Args:
            sources: by name; those of :data:`NAMES`, and any other that the application adds. A plan can do without
                the first three, and without no other.
            clock: of the device.
            settle_s: see the law.
            on_close: closes what the sources share.
        """
        self._on_close = on_close
        self._watched = {name: _Watched(source) for name, source in sources.items()}
        self._clock = clock
        self._settle_s = settle_s
        self._lock = threading.Lock()

    def check(self, needs: Eligibility | None = None) -> Verdict:
        """Say whether the device may train now.

        Args:
            needs: the plan's terms; None: nothing is known of the plan, and every condition has to hold.
        """
        lapsed: list[str] = []
        hints: list[str] = []
        with self._lock:
            now_s = self._clock.elapsed_s()
            for name, watched in self._watched.items():
                if needs is not None and name in CHOSEN_BY_PLANS and not getattr(needs, name):
                    continue
                reading = watched.look(now_s, self._settle_s)
                if not reading.holds:
                    lapsed.append(name)
                    hints.append(f"{name}: {reading.hint}")
        return Verdict(not lapsed, tuple(lapsed), tuple(hints))

    def close(self) -> None:
        """Close what the sources share."""
        if self._on_close is not None:
            self._on_close()
