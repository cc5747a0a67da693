"""FedAvgM: server momentum, the server half.

T.-M. H. Hsu, H. Qi, M. Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification, 1909.06335, section 3.2::

    Δ_t = Σ n_k (w^k − w_t) / Σ n_k
    v_t = β v_{t-1} + Δ_t
    w_{t+1} = w_t + η v_t

The devices run Federated Averaging's half. ``v`` starts at zero and is carried from round to round.
"""

from collections.abc import Mapping

import numpy as np

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerPhase, ServerState, tagged, untagged
from covey.algorithms.fedavg import MODEL, moved, weighted_mean
from covey.types.tensors import Tensors

__all__ = ["fedavgm"]

_V = "momentum"


def fedavgm(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr`` (η, default 1) and ``beta`` (β, default 0.9)."""
    server_lr, beta = settings.get("server_lr", 1.0), settings.get("beta", 0.9)

    def init(params: Tensors) -> ServerState:
        return ServerState(params, tagged(_V, {k: np.zeros(v.shape, np.float32) for k, v in params.items()}))

    def apply(state: ServerState, aggregate: Aggregate) -> ServerState:
        delta, before = weighted_mean(aggregate, MODEL), untagged(_V, state.extra)
        v = {k: beta * before[k].astype(np.float64) + d for k, d in delta.items()}
        kept = {k: x.astype(np.float32) for k, x in v.items()}
        return moved(state, {k: server_lr * x for k, x in v.items()}, tagged(_V, kept))

    return Algorithm("fedavgm", init, (ServerPhase(lambda state: {}, apply),))
