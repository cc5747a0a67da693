"""Bound one device's contribution: scale a vector to a length of at most ``clip`` (H. B. McMahan et al., 1710.06963).

The vector is everything that the device sends besides the public counter, as one: clipping parts one by one would allow
a length of ``clip * sqrt(parts)``.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import ClipMissingError, UpdateNotFiniteError

__all__ = ["check_clip", "clip_factor", "clipped", "joint_norm"]

_CHUNK = 1 << 16
# Rounding a scaled coordinate to float32 lengthens the vector by less than 2**-24 of itself; the factor itself and the
# norm are float64, whose errors (2**-52 for each of d squares, at worst d * 2**-53 of the sum, d < 2**28) are below it.
_SHORTER = 1 - 2.0**-23


def check_clip(clip: float | None, where: str = "clip") -> float:
    """Return a clip that can be one.

    Raises:
        ClipMissingError: none, or not a number above 0.
    """
    if clip is None or not 0 < clip < math.inf:
        raise ClipMissingError(
            where,
            expected="a length above 0 to which every contribution is clipped",
            got="none" if clip is None else f"{clip:g}",
            hint="noise hides a device only if no device can change the sum by more than a known length",
        )
    return clip


def joint_norm(vectors: Sequence[NDArray[np.floating]], where: str = "update") -> float:
    """Return the Euclidean length of all vectors as one, computed in float64.

    Raises:
        UpdateNotFiniteError: a NaN or an infinity.
    """
    total = 0.0
    for vector in vectors:
        for start in range(0, len(vector), _CHUNK):
            part = vector[start : start + _CHUNK].astype(np.float64)
            total += float(part @ part)
    if not math.isfinite(total):
        raise UpdateNotFiniteError(
            where,
            expected="finite values",
            got="a NaN, an infinity, or a length beyond float64",
            hint="training diverged on this device: a lower learning rate usually cures it",
        )
    return math.sqrt(total)


def clip_factor(norm: float, clip: float) -> float:
    """Return what a vector of this length is multiplied with: 1 where it is short enough (a zero vector is)."""
    return 1.0 if norm <= clip else clip / norm


def clipped(vectors: Sequence[NDArray[np.floating]], clip: float) -> tuple[list[NDArray[np.float32]], bool]:
    """Return the vectors, scaled together to a length of at most ``clip``, and whether they were short enough.

    Law: the length of the result, computed exactly, is at most ``clip``; a vector that is short enough keeps its bits.

    Raises:
        ClipMissingError: a clip that cannot be one.
        UpdateNotFiniteError: a NaN or an infinity.
    """
    norm = joint_norm(vectors)
    check_clip(clip)
    within = norm <= clip * _SHORTER
    factor = 1.0 if within else clip_factor(norm, clip * _SHORTER) * _SHORTER
    return [v.astype(np.float32) if within else (v * factor).astype(np.float32) for v in vectors], norm <= clip
