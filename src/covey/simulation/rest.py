"""Limits on participation, which noise of a tree needs: what a device's own calendar does outside a simulation."""

from collections.abc import Iterable

import msgspec

from covey.plans.manifest import NoiseTerms

__all__ = ["Rest"]


class Rest(msgspec.Struct):
    """Who rests, and until when.

    Law: a device that was selected when ``n`` rounds were committed is not let in before ``n + min_separation + 1``
    are, and not after it was selected ``max_participation`` times. Being selected counts, reporting or not.

    Attributes:
        max_participation: None: no limits.
        min_separation: rounds between two of one device.
        selected: how often each device was selected that ever was.
        until: how many rounds must be committed before a device that rests is let in.
    """

    max_participation: int | None = None
    min_separation: int = 0
    selected: dict[int, int] = {}
    until: dict[int, int] = {}

    @classmethod
    def of(cls, noise: NoiseTerms | None) -> "Rest":
        """Return the limits of a plan: none but under a tree."""
        if noise is None or noise.kind != "tree":
            return cls()
        return cls(noise.max_participation, noise.min_separation)

    def awake(self, back: Iterable[int], num_committed: int) -> list[int]:
        """Return who may check in now.

        Args:
            back: the devices of the round that just closed.
            num_committed: rounds committed before that one.
        """
        if self.max_participation is None:
            return list(back)
        for device in back:
            self.selected[device] = self.selected.get(device, 0) + 1
            if self.selected[device] < self.max_participation:
                self.until[device] = num_committed + self.min_separation + 1 if self.min_separation else num_committed
        # Whether the closed round commits is not known yet: without it, nobody comes back a round too early.
        awake = sorted(d for d, until in self.until.items() if until <= num_committed)
        for device in awake:
            del self.until[device]
        return awake

    def absent(self) -> list[int]:
        """Return who may not check in: whoever rests, and whoever took part as often as may be."""
        most = self.max_participation
        spent = [] if most is None else [d for d, count in self.selected.items() if count >= most]
        return [*self.until, *spent]

    def copy(self) -> "Rest":
        """Return what stays as it is while this goes on."""
        return Rest(self.max_participation, self.min_separation, dict(self.selected), dict(self.until))
