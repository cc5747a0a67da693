"""Add up what was spent, and say it as (epsilon, delta).

Composition and conversion are those of Google's dp-accounting (extra ``privacy``), imported when a figure is asked for:

- mechanisms that are Gaussian compose to one Gaussian, whose epsilon is analytic (B. Balle, Y.-X. Wang, Improving the
  Gaussian Mechanism for Differential Privacy, 1805.06530, equation 6); under sampling, by privacy-loss distributions;
- everything else composes as Rényi curves at fixed integer orders, and is converted by 2004.00010, Proposition 12.

Figures are upper bounds in both cases.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from covey.privacy.subsampling import amplified_curve
from covey.types.errors import DeltaError, NoiseError

__all__ = [
    "ORDERS",
    "GaussianLoss",
    "Loss",
    "RenyiLoss",
    "Spent",
    "amplified_epsilon",
    "check_delta",
    "epsilon",
    "solve_noise",
]

ORDERS: tuple[int, ...] = (*range(2, 257), 320, 384, 448, 512, 640, 768, 1024, 2048, 4096)
"""Rényi orders. Integers, because the Skellam mechanism's bound speaks of no others; large ones for small epsilons."""


@dataclass(frozen=True, slots=True)
class GaussianLoss:
    """A Gaussian mechanism: ``noise_multiplier`` is its standard deviation over its sensitivity."""

    noise_multiplier: float


@dataclass(frozen=True, slots=True)
class RenyiLoss:
    """Any mechanism, by an upper bound on its Rényi divergence at each of :data:`ORDERS`."""

    curve: tuple[float, ...]


Loss = GaussianLoss | RenyiLoss


@dataclass(frozen=True, slots=True)
class Spent:
    """``times`` uses of one mechanism, each on whatever the former ones gave."""

    loss: Loss
    times: int


def check_delta(delta: float, population: int) -> float:
    """Return a delta that means something.

    Raises:
        DeltaError: not above 0, or 1/population or more.
    """
    if not 0 < delta < 1 / population:
        raise DeltaError(
            "delta",
            expected=f"above 0 and below 1/{population} = {1 / population:.2g}",
            got=f"{delta:g}",
            hint="with a larger one, publishing one device's data whole would count as private",
        )
    return delta


def epsilon(spent: Iterable[Spent], delta: float) -> float:
    """Return epsilon at ``delta`` for everything that was spent: 0 for nothing, infinity for no noise."""
    used = [s for s in spent if s.times > 0]
    rho = sum(s.times * _rho(s.loss) for s in used if isinstance(s.loss, GaussianLoss))
    curves = [s for s in used if isinstance(s.loss, RenyiLoss)]
    if not curves:
        if rho == 0:
            return 0.0
        return float(_accounting().get_epsilon_gaussian(0.0 if math.isinf(rho) else (2 * rho) ** -0.5, delta))
    accountant = _accounting().rdp.RdpAccountant(list(ORDERS))
    if rho:
        accountant.compose(_accounting().ZCDpEvent(rho))
    total = list(accountant.rdp)
    for s in curves:
        assert isinstance(s.loss, RenyiLoss)
        total = [t + s.times * x for t, x in zip(total, s.loss.curve, strict=True)]
    return _converted(ORDERS, total, delta)


def amplified_epsilon(losses: Sequence[Loss], times: int, delta: float, sampling_rate: float) -> float:
    """Return epsilon at ``delta`` if every device joined each round with probability ``sampling_rate``, independently.

    Covey's selector draws a fixed number of those who check in: the figure is for whoever accepts that as an
    approximation, never the only one that is printed.

    Args:
        losses: of one round; all of them see the same sample.
        times: rounds.
        delta: of the figure.
        sampling_rate: above 0, at most 1.
    """
    if all(isinstance(loss, GaussianLoss) for loss in losses):
        dp = _accounting()
        rho = sum(_rho(loss) for loss in losses if isinstance(loss, GaussianLoss))
        event = dp.PoissonSampledDpEvent(sampling_rate, dp.GaussianDpEvent((2 * rho) ** -0.5))
        return float(dp.pld.PLDAccountant().compose(event, times).get_epsilon(delta))
    whole = [sum(_divergence(loss, i) for loss in losses) for i in range(len(ORDERS))]
    curve = amplified_curve(dict(zip(ORDERS, whole, strict=True)), sampling_rate)
    return _converted(tuple(curve), [times * x for x in curve.values()], delta)


def solve_noise(epsilon_at: Callable[[float], float], target: float) -> float:
    """Return the smallest noise multiplier, to a relative 1e-4 and rounded up, with an epsilon of at most ``target``.

    Args:
        epsilon_at: gives epsilon for a noise multiplier; falling.
        target: above 0.

    Raises:
        NoiseError: no multiplier up to 10,000 is enough.
    """
    low, high = 1e-2, 1e4
    if not epsilon_at(high) <= target:
        raise NoiseError("noise", expected=f"a noise multiplier of at most {high:g}", got=f"epsilon above {target:g}")
    if epsilon_at(low) <= target:
        return low
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon_at(middle) <= target else (middle, high)
    return high


def _rho(loss: GaussianLoss) -> float:
    """Zero-concentrated DP of a Gaussian mechanism: 1605.02065, Lemma 2.4."""
    return math.inf if loss.noise_multiplier <= 0 else 0.5 / loss.noise_multiplier**2


def _divergence(loss: Loss, index: int) -> float:
    return loss.curve[index] if isinstance(loss, RenyiLoss) else ORDERS[index] * _rho(loss)


def _converted(orders: Sequence[int], curve: Sequence[float], delta: float) -> float:
    return float(_accounting().rdp.compute_epsilon(list(orders), list(curve), delta)[0])


def _accounting() -> Any:
    return importlib.import_module("dp_accounting")
