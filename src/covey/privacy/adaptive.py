"""A clip that follows a quantile of the contributions' lengths.

G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, Differentially Private Learning with Adaptive Clipping, 1905.03871,
Algorithm 1: each device adds whether its update was short enough, ``b_i``; the server sees the noised sum only, and

    C <- C · exp(-η_C (b̄ - γ)),    b̄ = ½ + (Σ (b_i - ½) + N(0, σ_b²)) / n

with n the public denominator. ``b_i - ½`` is what travels: one device then moves the sum by ½, not 1.
"""

import math

from covey.privacy.mechanism import COUNT_UNITS, Mechanism

__all__ = ["adapted_clip", "indicator_units"]


def indicator_units(within: bool) -> int:
    """Return what a device adds to the noised count, in units of 1/512 of a device."""
    return COUNT_UNITS if within else -COUNT_UNITS


def adapted_clip(mechanism: Mechanism, clip: float, count_units: int) -> float:
    """Return the next round's clip, within the plan's bounds.

    Args:
        mechanism: with a ``quantile``.
        clip: this round's.
        count_units: the opened, noised sum of indicators.
    """
    assert mechanism.quantile is not None
    fraction = 0.5 + count_units / (2 * COUNT_UNITS * mechanism.denominator)
    # The fraction is a noised estimate: outside [0, 1] it can only be noise.
    fraction = min(max(fraction, 0.0), 1.0)
    following = clip * math.exp(-mechanism.clip_lr * (fraction - mechanism.quantile))
    return min(max(following, mechanism.clip_low), mechanism.clip_high)
