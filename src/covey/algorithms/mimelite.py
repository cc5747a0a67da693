"""MimeLite with momentum, the server half.

S. P. Karimireddy et al., Mime: Mimicking Centralized Stochastic Algorithms in Federated Learning, 2008.03606,
Algorithm 1 (the lines of MimeLite), with SGD and momentum as the base algorithm (table 1)::

    phase ``train``     y_i ← x; K steps  y_i ← y_i − η ((1 − β) g(y_i) + β m)
                        x⁺ = Σ n_i y_i / Σ n_i
    phase ``gradient``  ∇f_i(x) over all of a device's examples
                        m⁺ = (1 − β) Σ n_i ∇f_i(x) / Σ n_i + β m

The statistic ``m`` is broadcast and stays fixed while a device trains: what was learnt from all devices' data steers
each, which drifts less than with a momentum of its own. ``x`` is the same in both phases: the round's checkpoint.

Deviation: the two phases draw their cohorts one after the other, so that they need not be the same devices.
"""

from collections.abc import Mapping

import numpy as np

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerPhase, ServerState, tagged, untagged
from covey.algorithms.fedavg import add_weighted_mean, moved, weighted_mean
from covey.types.tensors import Tensors

__all__ = ["GRADIENT", "MOMENTUM", "mimelite"]

GRADIENT = "gradient"
"""Name of the second phase's segment."""

MOMENTUM = "momentum"
"""Name of the statistic that is broadcast."""


def mimelite(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr`` (default 1) and ``beta`` (β, default 0.9)."""
    server_lr, beta = settings.get("server_lr", 1.0), settings.get("beta", 0.9)

    def init(params: Tensors) -> ServerState:
        return ServerState(params, tagged(MOMENTUM, {k: np.zeros(v.shape, np.float32) for k, v in params.items()}))

    def trained(state: ServerState, aggregate: Aggregate) -> ServerState:
        return add_weighted_mean(state, aggregate, server_lr)

    def observed(state: ServerState, aggregate: Aggregate) -> ServerState:
        mean, before = weighted_mean(aggregate, GRADIENT), untagged(MOMENTUM, state.extra)
        after = {k: (beta * m.astype(np.float64) + (1 - beta) * mean[k]).astype(np.float32) for k, m in before.items()}
        still = {k: np.zeros(v.shape) for k, v in state.params.items()}
        return moved(state, still, tagged(MOMENTUM, after))

    phases = (ServerPhase(lambda state: state.extra, trained), ServerPhase(lambda state: {}, observed))
    return Algorithm("mimelite", init, phases)
