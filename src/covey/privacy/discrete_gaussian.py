"""The discrete Gaussian N_Z(0, σ²): P[X = k] proportional to exp(-k² / 2σ²), sampled exactly.

C. Canonne, G. Kamath, T. Steinke, The Discrete Gaussian for Differential Privacy, 2004.00010, Definition 1. Their
rejection sampler (Algorithm 3) is exact and slow; here the probabilities are tabulated in integer arithmetic.

Large σ are sums of small ones: for independent X1 ~ N_Z(0, σ1²) and X2 ~ N_Z(0, σ2²), completing the square gives
P[X1 + m X2 = z] proportional to exp(-z² / 2σ²) Σ_j exp(-(j - c z)² / 2s²) with σ² = σ1² + m² σ2², s = σ1 σ2 / σ and
a constant c. By Poisson summation the inner sum is the same for every z but for a factor within 1 ± 2.01 exp(-2π² s²).
With σ1 = 4m and σ2 > 2047 here, s > 3.99 and the factor is within 1 ± 2**-450.
"""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from covey.privacy.randomness import Randomness
from covey.privacy.sampler import TableSampler
from covey.types.errors import NoiseError

__all__ = ["DiscreteGaussian"]

_FIXED_BITS = 256  # of the fixed-point weights; K multiplications lose less than K² 2**-256 of the total
_TAIL_BITS = 132  # weights below 2**-132 of the largest are left out: the mass of what is left out is below 2**-128
_MAX_TABLE_SIGMA = 1 << 12  # a table of 110,000 thresholds, made in 0.2 s; larger ones are sums of two draws
_MAX_SIGMA = 1 << 48
_SPLIT = 4  # σ1 = 4m


class DiscreteGaussian:
    """The sampler for one σ. Making one takes up to 0.2 s; it is kept and shared (see :func:`table`)."""

    def __init__(self, sigma: float) -> None:
        """Prepare the tables.

        Args:
            sigma: the parameter σ in integer units: the standard deviation, up to a relative error of
                ``4π² σ² exp(-2π² σ²)``, which is below 1e-12 from σ = 1.3 on.

        Raises:
            NoiseError: not between 0.25 and 2**48.
        """
        if not 0.25 <= sigma <= _MAX_SIGMA:
            raise NoiseError("discrete Gaussian", expected=f"a sigma of 0.25 to {_MAX_SIGMA}", got=f"{float(sigma):g}")
        exact = Fraction(sigma) ** 2
        self.variance = float(exact)
        self.bound: int
        self.distance: float
        self._multiplier = 1
        self._fine: DiscreteGaussian | None = None
        if exact > _MAX_TABLE_SIGMA**2:
            m = 1 << (math.isqrt(int(exact)) // _MAX_TABLE_SIGMA).bit_length()
            self._multiplier = m
            self._fine = DiscreteGaussian(_SPLIT * m)
            exact = exact / m**2 - _SPLIT**2
        self._table = table(exact)
        fine_bound, fine_distance = (self._fine.bound, self._fine.distance) if self._fine else (0, 0.0)
        self.bound = self._multiplier * self._table.bound + fine_bound
        # The tail that the table leaves out and its own rounding; the split's 2**-450 vanishes beside them.
        self.distance = self._table.distance + 2.0**-128 + fine_distance

    def draw(self, count: int, source: Randomness) -> NDArray[np.int64]:
        """Return ``count`` independent samples, int64."""
        coarse = self._table.draw(count, source)
        if self._fine is None:
            return coarse.astype(np.int64)
        out = np.multiply(coarse, np.int64(self._multiplier), dtype=np.int64)
        out += self._fine.draw(count, source)
        return out


@lru_cache(maxsize=32)
def table(variance: Fraction) -> TableSampler:
    """Return the table of N_Z(0, variance)."""
    one = 1 << _FIXED_BITS
    ratio = _exp_minus(1 / (2 * variance))
    step = ratio * ratio >> _FIXED_BITS  # exp(-(2k+1)/2σ²) becomes exp(-(2k+3)/2σ²)
    weights = [one]
    while weights[-1] >> (_FIXED_BITS - _TAIL_BITS):
        weights.append(weights[-1] * ratio >> _FIXED_BITS)
        ratio = ratio * step >> _FIXED_BITS
    return TableSampler(weights)


def _exp_minus(x: Fraction) -> int:
    """Return exp(-x) in fixed point, by its Taylor series on x / 2**h, squared h times."""
    guard = 64
    bits = _FIXED_BITS + guard
    halvings = max(0, math.ceil(math.log2(max(float(x), 2.0**-60))) + 8)
    small = (x.numerator << bits) // (x.denominator << halvings)
    total, term, n = 1 << bits, 1 << bits, 0
    while term:
        n += 1
        term = (term * small >> bits) // n
        total += -term if n % 2 else term
    for _ in range(halvings):
        total = total * total >> bits
    return total >> guard
