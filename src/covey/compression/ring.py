"""How wide the ring must be: from the cohort, the clamp and an error budget, with the reasons in words.

Errors are per device and relative to the squared norm of its update (vNMSE), for an update of the expected norm whose
rotated coordinates are Gaussian; the mean of n devices has 1/n of the rounding error. A ring of B bits leaves
``q = floor((2^(B-1) - 1) / n_max)`` steps up to the clamp, so that even n_max devices that all send q cannot wrap.
"""

from dataclasses import dataclass, replace

import numpy as np

from covey.compression.secure import SecurePath
from covey.types.errors import LayoutError

__all__ = ["RingChoice", "choose_ring", "expected_errors"]

_CLAMPS = (2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
_GRID = np.linspace(0, 9, 9001)
_DENSITY = np.exp(-(_GRID**2) / 2) * np.sqrt(2 / np.pi) * (_GRID[1] - _GRID[0])
_DENSITY[0] /= 2
_LEAST_BITS, _MOST_BITS = 8, 32


@dataclass(frozen=True, slots=True)
class RingChoice:
    """A path, what it costs in error, and why it is the narrowest.

    Attributes:
        path: with the chosen ring and clamp.
        rounding_error: expected squared error of rounding, relative to the update's squared norm.
        clamp_error: the same of clamping.
        reasons: one line for each step of the choice.
    """

    path: SecurePath
    rounding_error: float
    clamp_error: float
    reasons: tuple[str, ...]

    @property
    def error(self) -> float:
        """Both errors together. Subsampling's own, ``1/p - 1``, is no matter of the ring and not in it."""
        return self.rounding_error + self.clamp_error


def expected_errors(path: SecurePath) -> tuple[float, float]:
    """Return the errors of rounding and of clamping for standard Gaussian coordinates, by numerical integration.

    Rounding x between two integers costs ``f (1 - f)`` of a squared step, f the fractional part of x; clamping costs
    the squared excess.
    """
    step = path.clamp_deviations / path.bound
    inside = np.minimum(_GRID, path.clamp_deviations)
    fraction = np.modf(inside / step)[0]
    rounding = float((fraction * (1 - fraction) * _DENSITY).sum()) * step * step
    return rounding, float(((_GRID - inside) ** 2 * _DENSITY).sum())


def choose_ring(
    length: int,
    n_max: int,
    norm: float,
    *,
    max_error: float = 0.01,
    keep: float = 1.0,
) -> RingChoice:
    """Return the narrowest ring (8 to 32 bits) whose expected error is within the budget, and the clamp that suits it.

    Args:
        length: of the segment.
        n_max: the most devices in one sum.
        norm: expected L2 norm of a device's segment.
        max_error: the budget, relative to the squared norm, per device.
        keep: see :class:`SecurePath`.

    Raises:
        LayoutError: no ring of 32 bits or fewer is within the budget.
    """
    reasons = []
    for bits in range(_LEAST_BITS, _MOST_BITS + 1):
        best: RingChoice | None = None
        for clamp in _CLAMPS:
            try:
                path = SecurePath(length, n_max, bits, norm, keep, clamp)
            except LayoutError:
                continue
            errors = expected_errors(path)
            if best is None or sum(errors) < best.error:
                best = RingChoice(path, *errors, ())
        if best is None:
            reasons.append(f"{bits} bits: no room for one step of each of {n_max} devices")
            continue
        reasons.append(_reason(best, max_error))
        if best.error <= max_error:
            return replace(best, reasons=tuple(reasons))
    raise LayoutError(
        "ring", expected=f"an error of at most {max_error:g} within 32 bits", got=reasons[-1], hint="a larger budget"
    )


def _reason(choice: RingChoice, max_error: float) -> str:
    path = choice.path
    verdict = "within" if choice.error <= max_error else "over"
    return (
        f"{path.ring_bits} bits: {path.n_max} devices x {path.bound} steps < 2^{path.ring_bits - 1}; clamped at "
        f"{path.clamp_deviations:g} deviations; error {choice.error:.2g} (rounding {choice.rounding_error:.2g}, "
        f"clamping {choice.clamp_error:.2g}), {verdict} the budget of {max_error:g}"
    )
