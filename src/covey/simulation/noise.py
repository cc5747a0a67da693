"""Noise of a simulation's server: seeded by name, so that a resumed run draws what the first would have."""

import numpy as np
from numpy.typing import NDArray

from covey.privacy.randomness import AesCtr
from covey.types.rng import derive_seed

__all__ = ["RoundNoise"]


class RoundNoise:
    """A source of randomness that begins anew with every attempt at a round; never private.

    Noise that spans rounds (a tree's) is drawn from streams of other names.
    """

    private = False

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._now: tuple[int, int] | None = None
        self.begin(0, 0)

    def begin(self, round_number: int, attempt: int) -> None:
        """Take the stream of an attempt, unless it is the one at hand."""
        if self._now != (round_number, attempt):
            self._now = (round_number, attempt)
            self._stream = self.named(*self._now)

    def named(self, *labels: str | int) -> AesCtr:
        """See :class:`covey.privacy.randomness.NamedRandomness`."""
        return AesCtr(derive_seed(self._seed, "server noise", *labels), private=False)

    def fill(self, out: NDArray[np.uint64] | NDArray[np.uint32]) -> None:
        """See :class:`covey.privacy.randomness.Randomness`."""
        self._stream.fill(out)
