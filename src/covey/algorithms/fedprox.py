"""FedProx, the server half: that of Federated Averaging.

T. Li et al., Federated Optimization in Heterogeneous Networks, 1812.06127, Algorithm 2. The devices minimise
``h_k(w; w_t) = F_k(w) + (μ/2) ‖w − w_t‖²`` (equation 2); see :mod:`covey.algorithms.local.fedprox`.

Deviation: devices are drawn uniformly and their updates weighted by examples, as everywhere in Covey; the paper draws
by ``p_k`` and takes the plain mean, which has the same expectation.
"""

import dataclasses
from collections.abc import Mapping

from covey.algorithms.algorithm import Algorithm
from covey.algorithms.fedavg import fedavg

__all__ = ["fedprox"]


def fedprox(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr`` (default 1)."""
    return dataclasses.replace(fedavg(settings), name="fedprox")
