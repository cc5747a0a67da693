"""The Skellam distribution Sk(0, μ): the difference of two Poisson variables of mean μ/2, sampled exactly.

N. Agarwal, P. Kairouz, Z. Liu, The Skellam Mechanism for Differentially Private Federated Learning, 2110.04995,
Definition 3.1: P[X = k] = exp(-μ) I_{|k|}(μ), with variance μ. Sums of Skellam variables are Skellam, exactly: that is
what the discrete Gaussian lacks.

The modified Bessel functions are tabulated by Miller's backward recurrence I_{k-1} = I_{k+1} + (2k/μ) I_k in integers
(stable downwards: errors shrink like I_k grows), and normalised by their own sum, which is exp(μ).
"""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from covey.privacy.randomness import Randomness
from covey.privacy.sampler import TableSampler
from covey.types.errors import NoiseError

__all__ = ["Skellam"]

_START_BITS = 256  # of the first value of the recurrence: each step loses less than one unit of 2**-256 of it
_TAIL_BITS = 132
_MAX_SIGMA = 1 << 14


class Skellam:
    """The sampler for one standard deviation ``sigma``, that is for μ = sigma²."""

    def __init__(self, sigma: float) -> None:
        """Prepare the table.

        Raises:
            NoiseError: sigma not between 0.25 and 16384 units.
        """
        if not 0.25 <= sigma <= _MAX_SIGMA:
            raise NoiseError(
                "Skellam",
                expected=f"a sigma of 0.25 to {_MAX_SIGMA} units",
                got=f"{sigma:g}",
                hint="a coarser unit; finer steps than that gain nothing",
            )
        self.variance = sigma * sigma
        self._table = table(Fraction(sigma) ** 2)
        self.bound = self._table.bound
        self.distance = self._table.distance + 2.0**-128

    def draw(self, count: int, source: Randomness) -> NDArray[np.int64]:
        """Return ``count`` independent samples, int64."""
        return self._table.draw(count, source).astype(np.int64)


@lru_cache(maxsize=32)
def table(mean: Fraction) -> TableSampler:
    """Return the table of Sk(0, mean)."""
    # By Bennett's inequality P[X >= k] < 2**-140 there; starting higher still, Miller's start-up error vanishes.
    start = math.ceil(20 * math.sqrt(mean)) + 160
    following, value = 0, 1 << _START_BITS
    weights = [value]
    for k in range(start, 0, -1):
        following, value = value, following + (2 * k * mean.denominator * value) // mean.numerator
        weights.append(value)
    weights.reverse()
    largest = weights[0]
    return TableSampler([w for w in weights if w << _TAIL_BITS >= largest])
