"""What Skellam noise protects, from one device or from the sum of many.

N. Agarwal, P. Kairouz, Z. Liu, The Skellam Mechanism for Differentially Private Federated Learning, 2110.04995,
Theorem 3.5 and Corollary 4.1: for integer vectors with sensitivities Δ1 and Δ2 and noise Sk(0, μ) on each coordinate,
the Rényi divergence of an integer order α > 1 is at most

    α Δ2² / (2μ) + min( ((2α - 1) Δ2² + 6 Δ1) / (4μ²),  3 Δ1 / (2μ) )

Skellam variables add up exactly, so μ is the variance of all honest noise in the sum, however it was shared.
"""

from collections.abc import Sequence

__all__ = ["renyi_curve"]


def renyi_curve(orders: Sequence[int], *, l1: float, l2: float, variance: float) -> tuple[float, ...]:
    """Return the bound on the Rényi divergence at each integer order above 1.

    Args:
        orders: integers above 1: the theorem speaks of no others.
        l1: largest sum of magnitudes of one device's integer vector.
        l2: largest length of it.
        variance: μ, of all honest noise on one coordinate of the sum, in squared units.
    """
    square = l2 * l2
    return tuple(
        a * square / (2 * variance) + min(((2 * a - 1) * square + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
        for a in orders
    )
