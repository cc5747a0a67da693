"""From reals to integers without forgetting the clip: conditional stochastic rounding.

P. Kairouz, Z. Liu, T. Steinke, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation, 2102.06387, Algorithm 1 and Proposition 22. Rounding each coordinate up or down at random is unbiased but
can lengthen the vector by up to √d; so it is repeated until the integer vector is no longer than

    min(c + √d, √(c² + d/4 + √(2 ln(1/β)) (c + √d/2)))

which one attempt is with a probability of at least 1 - β. Privacy rests on the check alone, which is done in integers:
not on the quality of the random bits, and not on float arithmetic. What conditioning costs is a bias of at most
``β c / (1 - β)`` in the worst case, and next to nothing on vectors of training.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from covey.privacy.randomness import Randomness
from covey.types.errors import PrivacyError, UpdateRangeError

__all__ = ["BETA", "l1_bound", "l2_bound", "round_conditionally"]

BETA = math.exp(-0.5)
"""The paper's choice."""

_CHUNK = 1 << 15
_ATTEMPTS = 200  # all fail with a probability of at most BETA**200 < 2**-144
_MAX_MAGNITUDE = 1 << 30  # squares of coordinates, a chunk of them, add up in int64


def l2_bound(clip_units: float, dim: int) -> float:
    """Return the longest integer vector that rounding may give for one of length ``clip_units`` (Proposition 22)."""
    plain = clip_units + math.sqrt(dim)
    spread = math.sqrt(2 * math.log(1 / BETA)) * (clip_units + math.sqrt(dim) / 2)
    return min(plain, math.sqrt(clip_units**2 + dim / 4 + spread))


def l1_bound(l2: float, dim: int) -> float:
    """Return the largest sum of magnitudes of an integer vector of length ``l2``: integers have |k| <= k²."""
    return l2 * min(math.sqrt(dim), l2)


def round_conditionally(
    vectors: Sequence[NDArray[np.floating]], factor: float, clip_units: float, source: Randomness
) -> list[NDArray[np.int32]]:
    """Round ``vectors * factor`` to integers, jointly no longer than :func:`l2_bound`.

    Args:
        vectors: finite reals, jointly of length at most ``clip_units / factor``.
        factor: integer units in one.
        clip_units: the clip in integer units.
        source: of the rounding's bits.

    Raises:
        UpdateRangeError: the vectors are longer than the clip: they were not clipped.
        PrivacyError: no attempt was short enough, which does not happen to clipped vectors.
    """
    dim = sum(len(v) for v in vectors)
    limit = math.floor(l2_bound(clip_units, dim) ** 2)
    for _ in range(_ATTEMPTS):
        out, total = [], 0
        for vector in vectors:
            rounded, squares = _rounded(vector, factor, source)
            out.append(rounded)
            total += squares
        if total <= limit:
            return out
        if total > (clip_units + math.sqrt(dim)) ** 2 * (1 + 1e-9):
            # No rounding of a vector within the clip is that long.
            raise UpdateRangeError("rounding", expected=f"vectors of at most {clip_units:g} units", got="longer ones")
    raise PrivacyError("rounding", expected=f"a rounding within {limit} squared units", got=f"{_ATTEMPTS} beyond it")


def _rounded(vector: NDArray[np.floating], factor: float, source: Randomness) -> tuple[NDArray[np.int32], int]:
    out = np.empty(len(vector), np.int32)
    words = np.empty(min(_CHUNK, len(vector)), np.uint32)
    total = 0
    for start in range(0, len(vector), _CHUNK):
        scaled = vector[start : start + _CHUNK] * np.float64(factor)
        if not np.abs(scaled).max() < _MAX_MAGNITUDE:
            raise UpdateRangeError("rounding", expected=f"magnitudes below {_MAX_MAGNITUDE}", got="a larger one")
        low = np.floor(scaled)
        u = words[: len(scaled)]
        source.fill(u)
        scaled -= low
        scaled *= 2.0**32
        part = low.astype(np.int32)
        part += u < scaled  # up with the probability of the fraction, to 2**-32
        out[start : start + _CHUNK] = part
        wide = part.astype(np.int64)
        total += int(wide @ wide) if np.abs(part).max(initial=0) < 1 << 23 else sum(int(x) ** 2 for x in wide.tolist())
    return out, total
