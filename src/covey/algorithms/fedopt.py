"""Adaptive server optimizers, the server halves: FedAdagrad, FedAdam and FedYogi.

S. J. Reddi et al., Adaptive Federated Optimization, 2003.00295, Algorithm 2::

    Δ_t = mean of the devices' changes
    m_t = β1 m_{t-1} + (1 − β1) Δ_t
    v_t = v_{t-1} + Δ_t²                                       FedAdagrad
    v_t = v_{t-1} − (1 − β2) Δ_t² sign(v_{t-1} − Δ_t²)         FedYogi
    v_t = β2 v_{t-1} + (1 − β2) Δ_t²                           FedAdam
    x_{t+1} = x_t + η m_t / (√v_t + τ)

with ``m_{-1} = 0`` and ``v_{-1} = τ²``, the least that the paper allows. As in the paper there is no correction of
bias. The devices run Federated Averaging's half; their changes are weighted by examples, as in the paper's
experiments (section 5). ``m`` and ``v`` are carried from round to round.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerPhase, ServerState, tagged, untagged
from covey.algorithms.fedavg import MODEL, moved, weighted_mean
from covey.types.tensors import Tensors

__all__ = ["fedadagrad", "fedadam", "fedyogi"]

_M, _V = "first_moment", "second_moment"

Array = NDArray[np.float64]
SecondMoment = Callable[[Array, Array, float], Array]
"""``(v_{t-1}, Δ_t², β2) -> v_t``."""


def fedadagrad(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings``: ``server_lr`` (η, 0.1), ``beta1`` (0, as in the paper), ``tau`` (1e-3)."""
    return _adaptive("fedadagrad", settings, 0.1, 0.0, lambda v, square, beta2: v + square)


def fedadam(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings``: ``server_lr`` (η, 0.01), ``beta1`` (0.9), ``beta2`` (0.99), ``tau``."""
    return _adaptive("fedadam", settings, 0.01, 0.9, lambda v, square, beta2: beta2 * v + (1 - beta2) * square)


def fedyogi(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` as those of :func:`fedadam`."""
    return _adaptive(
        "fedyogi", settings, 0.01, 0.9, lambda v, square, beta2: v - (1 - beta2) * square * np.sign(v - square)
    )


def _adaptive(name: str, settings: Mapping[str, float], lr: float, beta: float, second: SecondMoment) -> Algorithm:
    server_lr, tau = settings.get("server_lr", lr), settings.get("tau", 1e-3)
    beta1, beta2 = settings.get("beta1", beta), settings.get("beta2", 0.99)

    def init(params: Tensors) -> ServerState:
        m = {k: np.zeros(p.shape, np.float32) for k, p in params.items()}
        v = {k: np.full(p.shape, tau**2, np.float32) for k, p in params.items()}
        return ServerState(params, {**tagged(_M, m), **tagged(_V, v)})

    def apply(state: ServerState, aggregate: Aggregate) -> ServerState:
        m, v = _wide(untagged(_M, state.extra)), _wide(untagged(_V, state.extra))
        step: dict[str, Array] = {}
        for k, delta in weighted_mean(aggregate, MODEL).items():
            m[k] = beta1 * m[k] + (1 - beta1) * delta
            v[k] = second(v[k], np.square(delta), beta2)
            step[k] = server_lr * m[k] / (np.sqrt(v[k]) + tau)
        return moved(state, step, {**tagged(_M, _narrow(m)), **tagged(_V, _narrow(v))})

    return Algorithm(name, init, (ServerPhase(lambda state: {}, apply),))


def _wide(tensors: Tensors) -> dict[str, Array]:
    return {k: np.asarray(x, np.float64) for k, x in tensors.items()}


def _narrow(tensors: Mapping[str, Array]) -> Tensors:
    return {k: x.astype(np.float32) for k, x in tensors.items()}
