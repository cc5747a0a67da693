"""Who may check in: one bit for each device, whatever the size of the population."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from covey.simulation.availability import Trace
from covey.types.rng import generator

__all__ = ["Roster"]


class Roster:
    """The devices of a population that are neither in a round nor at rest.

    Law: a draw is uniform among those that are available, and depends on the seed and its labels only.
    """

    def __init__(self, num_devices: int, trace: Trace, seed: int) -> None:
        """Begin with all devices."""
        self._here = np.ones(num_devices, np.bool_)
        self._trace = trace
        self._seed = seed

    def draw(self, count: int, now_s: float, *labels: int) -> list[int]:
        """Take at most ``count`` devices that are available now, in random order."""
        rng = generator(self._seed, "selection", *labels)
        if self._trace.always and 8 * count < np.count_nonzero(self._here):
            candidates = self._guessed(count, rng)
        else:
            candidates = np.flatnonzero(self._here)
            candidates = candidates[self._trace.at(candidates, now_s)]
        taken = rng.permutation(candidates)[:count]
        self._here[taken] = False
        return [int(d) for d in taken]

    def release(self, devices: Iterable[int]) -> None:
        """Let devices check in again."""
        self._here[list(devices)] = True

    def hold(self, devices: Iterable[int]) -> None:
        """Keep devices from checking in."""
        self._here[list(devices)] = False

    def is_available(self, device: int, at_s: float) -> bool:
        """Return whether a device is available at some time, in a round or not."""
        return bool(self._trace.at(np.array([device]), at_s)[0])

    def _guessed(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return a few of very many: guess until enough differ, instead of listing a million."""
        found: dict[int, None] = {}
        while len(found) < count:
            guesses = rng.integers(0, len(self._here), count)
            found |= dict.fromkeys(guesses[self._here[guesses]].tolist())
        return np.fromiter(found, np.int64, len(found))
