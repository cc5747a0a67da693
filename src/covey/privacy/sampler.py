"""Draw integers from a symmetric distribution, exactly to a stated distance, as fast as NumPy adds.

Inversion of a table: a 128-bit uniform number U is compared with thresholds ``T_k = floor(2**128 P[X <= k])``, and the
sample is the number of thresholds at or below U. The first 64 bits decide unless they *equal* those of a threshold;
only then are 64 more drawn. A guide table over the first bits answers nearly all draws with one look-up.

Pure-Python rejection samplers are as exact and take 30 s for 1.66 M samples; NumPy's generators are fast, but neither
exact nor cryptographic.

The time of a draw depends on its value (whether the guide answered it): whoever can time one device's sampling to the
nanosecond learns a little about its noise. That attacker is outside what Covey defends against.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey.privacy.randomness import Randomness

__all__ = ["THRESHOLD_BITS", "IntegerNoise", "TableSampler"]

THRESHOLD_BITS = 128
_CHUNK = 1 << 15  # draws, guide indices and samples of one chunk stay in the second-level cache
_WORD = 1 << 64
_MIN_GUIDE_BITS, _MAX_GUIDE_BITS = 12, 20  # at most 4 MB, for tables that are that large themselves


class TableSampler:
    """Samples ``k`` in ``[-bound, bound]`` with probability proportional to ``weights[|k|]``.

    Attributes:
        bound: the largest magnitude that can be drawn.
        distance: an upper bound on the total-variation distance between a draw and the exact distribution of the
            weights: every threshold is rounded down by less than ``2**-128``, and there are ``2 * bound`` of them.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Build the table. ``weights[k]`` is the integer weight of ``k`` and of ``-k``; ``weights[0]`` of 0."""
        self.bound = len(weights) - 1
        self.distance = 2 * self.bound * 2.0**-THRESHOLD_BITS
        self._thresholds = _thresholds(weights)
        self._high = np.array([t >> 64 for t in self._thresholds], np.uint64)
        bits = min(_MAX_GUIDE_BITS, max(_MIN_GUIDE_BITS, len(weights).bit_length() + 6))
        self._shift = np.uint64(64 - bits)
        self._guide = self._make_guide(bits)

    def _make_guide(self, bits: int) -> NDArray[np.int32]:
        """Return for each value of the first bits the sample, or a number out of range where a threshold lies there."""
        starts = np.arange(1 << bits, dtype=np.uint64) << self._shift
        guide = (np.searchsorted(self._high, starts, side="right") - self.bound).astype(np.int32)
        # A threshold's own bucket is ambiguous, whatever its place in it: equality needs more bits.
        guide[np.unique((self._high >> self._shift).astype(np.int64))] = self.bound + 1
        return guide

    def draw(self, count: int, source: Randomness) -> NDArray[np.int32]:
        """Return ``count`` independent samples, int32."""
        out = np.empty(count, np.int32)
        self.draw_into(out, source)
        return out

    def draw_into(self, out: NDArray[np.int32], source: Randomness) -> None:
        """Overwrite a contiguous one-dimensional array with independent samples."""
        words = np.empty(min(_CHUNK, len(out)), np.uint64)
        index = np.empty(len(words), np.uint64)
        for start in range(0, len(out), _CHUNK):
            part = out[start : start + _CHUNK]
            u, i = words[: len(part)], index[: len(part)]
            source.fill(u)
            np.right_shift(u, self._shift, out=i)
            # The index cannot be out of range; mode="clip" spares NumPy a buffered copy of the output.
            np.take(self._guide, i.view(np.int64), out=part, mode="clip")
            open_ = np.flatnonzero(part > self.bound)
            if len(open_):
                part[open_] = self._searched(u[open_], source)

    def _searched(self, u: NDArray[np.uint64], source: Randomness) -> NDArray[np.int32]:
        below = np.searchsorted(self._high, u, side="right")
        samples = (below - self.bound).astype(np.int32)
        ties = np.flatnonzero((below > 0) & (self._high[np.maximum(below, 1) - 1] == u))
        if len(ties):
            more = np.empty(len(ties), np.uint64)
            source.fill(more)
            for position, low in zip(ties.tolist(), more.tolist(), strict=True):
                samples[position] = bisect_right(self._thresholds, int(u[position]) * _WORD + low) - self.bound
        return samples


class IntegerNoise(Protocol):
    """What every integer noise of this package offers.

    Attributes:
        variance: of one sample, in squared units.
        bound: the largest magnitude of a sample.
        distance: upper bound on the total-variation distance of one sample from the exact distribution.
    """

    variance: float
    bound: int
    distance: float

    def draw(self, count: int, source: Randomness) -> NDArray[np.int64]:
        """Return ``count`` independent samples."""
        ...


def _thresholds(weights: Sequence[int]) -> list[int]:
    total = weights[0] + 2 * sum(weights[1:])
    symmetric = [*reversed(weights[1:]), *weights[:-1]]  # of -bound .. bound - 1: beyond the last one there is only one
    out, below = [], 0
    for weight in symmetric:
        below += weight
        out.append((below << THRESHOLD_BITS) // total)
    return out
