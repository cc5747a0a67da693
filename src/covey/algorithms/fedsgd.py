"""FedSGD: 1602.05629, section 2, the baseline of the paper: one full-batch gradient from each device a round.

Paper: ``w_{t+1} = w_t − η Σ_k (n_k / n) g_k``, ``g_k = ∇F_k(w_t)``. Each device sends ``−n_k g_k``; the learning rate
``server_lr`` stays on the server. Equal to Federated Averaging with one epoch and one batch of everything.
"""

from collections.abc import Mapping

from covey.algorithms.algorithm import Algorithm, ServerPhase, ServerState
from covey.algorithms.fedavg import add_weighted_mean

__all__ = ["fedsgd"]


def fedsgd(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr``, the paper's η (default 0.1)."""
    server_lr = settings.get("server_lr", 0.1)
    return Algorithm(
        name="fedsgd",
        init=lambda params: ServerState(params),
        phases=(
            ServerPhase(
                shared=lambda state: {},
                apply=lambda state, aggregate: add_weighted_mean(state, aggregate, server_lr),
            ),
        ),
    )
