"""Limits on participation, which noise of a tree needs: what a device's own calendar does outside a simulation."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from covey.plans.manifest import NoiseTerms

__all__ = ["Rest"]


@dataclass(slots=True)
class Rest:
    """Who rests, and until when.

    Law: a device that was selected when ``n`` rounds were committed is not let in before ``n + min_separation + 1``
    are, and not after it was selected ``max_participation`` times. Being selected counts, reporting or not.
    """

    max_participation: int | None = None
    min_separation: int = 0
    _selected: Counter[int] = field(default_factory=Counter)
    _until: dict[int, int] = field(default_factory=dict)
    _began: bool = False

    @classmethod
    def of(cls, noise: NoiseTerms | None) -> "Rest":
        """Return the limits of a plan: none but under a tree."""
        if noise is None or noise.kind != "tree":
            return cls()
        return cls(noise.max_participation, noise.min_separation)

    def awake(self, back: Iterable[int], num_committed: int) -> list[int]:
        """Return who may check in now.

        Args:
            back: the devices of the round that just closed; at the first call, all devices.
            num_committed: rounds committed before that one.
        """
        if self.max_participation is None:
            return list(back)
        if not self._began:
            self._began = True
            return list(back)
        for device in back:
            self._selected[device] += 1
            if self._selected[device] < self.max_participation:
                self._until[device] = num_committed + self.min_separation + 1 if self.min_separation else num_committed
        # Whether the closed round commits is not known yet: without it, nobody comes back a round too early.
        awake = sorted(d for d, until in self._until.items() if until <= num_committed)
        for device in awake:
            del self._until[device]
        return awake
