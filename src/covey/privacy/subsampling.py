"""Amplification by Poisson sampling, for any mechanism of which the Rényi curve is known.

Y. Zhu, Y.-X. Wang, Poisson Subsampled Rényi Differential Privacy, ICML 2019, Theorem 5: if each device takes part with
probability γ, independently, the divergence of an integer order α is at most

    1/(α-1) · log( (1-γ)^{α-1} (αγ - γ + 1) + C(α,2) γ² (1-γ)^{α-2} e^{ε(2)}
                   + 3 Σ_{l=3}^{α} C(α,l) (1-γ)^{α-l} γ^l e^{(l-1) ε(l)} )
"""

import math
from collections.abc import Mapping

__all__ = ["amplified_curve"]


def amplified_curve(curve: Mapping[int, float], sampling_rate: float) -> dict[int, float]:
    """Return the curve under sampling, for every order up to which ``curve`` has no gap; never above ``curve``.

    Args:
        curve: the divergence by integer order, from 2 on.
        sampling_rate: γ, above 0, at most 1.
    """
    out: dict[int, float] = {}
    order = 2
    while order in curve:
        out[order] = min(curve[order], _bound(curve, order, sampling_rate) if sampling_rate < 1 else math.inf)
        order += 1
    return out


def _bound(curve: Mapping[int, float], order: int, rate: float) -> float:
    stay, join = math.log1p(-rate), math.log(rate)
    logs = [
        (order - 1) * stay + math.log1p((order - 1) * rate),
        _log_binomial(order, 2) + 2 * join + (order - 2) * stay + curve[2],
    ]
    logs += [
        math.log(3) + _log_binomial(order, k) + (order - k) * stay + k * join + (k - 1) * curve[k]
        for k in range(3, order + 1)
    ]
    largest = max(logs)
    return (largest + math.log(math.fsum(math.exp(x - largest) for x in logs))) / (order - 1)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
