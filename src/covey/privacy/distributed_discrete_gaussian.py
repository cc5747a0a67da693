"""What the sum of discrete Gaussian noise of many devices protects.

P. Kairouz, Z. Liu, T. Steinke, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation, 2102.06387, Theorem 1 and Proposition 14. A sum of discrete Gaussians is not one, but close: with
``n`` shares of parameter σ in integer units,

    τ = 10 Σ_{k=1}^{n-1} exp(-2π² σ² k / (k+1))

and for sensitivities Δ1, Δ2 (integers, in the same units) in d dimensions, the Rényi divergence of order α is at most

    min( α/2 · Δ2²/(nσ²) + τ d,   α/2 · (Δ2²/(nσ²) + 2 Δ1 τ/(√n σ) + τ² d),   α/2 · (Δ2/(√n σ) + τ √d)² )

Further shares, of survivors beyond those counted, only process the result.
"""

import math
from collections.abc import Sequence

__all__ = ["renyi_curve", "tau"]


def tau(sigma: float, num_shares: int) -> float:
    """Return τ; 0 for one share, which is a discrete Gaussian. ``sigma`` is that of one share, in units."""
    # The terms fall with k and soon do not: a sum of floats loses less than n * 2**-52 of it, covered by the 1e-9.
    scale = -2 * (math.pi * sigma) ** 2
    return 10 * (1 + 1e-9) * math.fsum(math.exp(scale * k / (k + 1)) for k in range(1, num_shares))


def renyi_curve(
    orders: Sequence[float], *, l1: float, l2: float, dim: int, sigma: float, num_shares: int
) -> tuple[float, ...]:
    """Return the bound on the Rényi divergence at each order (Proposition 14).

    Args:
        orders: above 1.
        l1: largest sum of magnitudes of one device's integer vector.
        l2: largest length of it.
        dim: its number of coordinates.
        sigma: parameter of one share of noise, in units.
        num_shares: how many honest shares are surely in the sum.
    """
    t = tau(sigma, num_shares)
    total = math.sqrt(num_shares) * sigma
    a, b = l2 / total, l1 / total
    flat = a * a
    mixed = min(a * a + 2 * b * t + t * t * dim, (a + t * math.sqrt(dim)) ** 2)
    return tuple(min(order / 2 * flat + t * dim, order / 2 * mixed) for order in orders)
