"""Federated Averaging, the server half.

H. B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 1602.05629,
Algorithm 1.

Paper: ``w_{t+1} = Σ_{k∈S_t} (n_k / m_t) w^k``, ``m_t = Σ_{k∈S_t} n_k`` (the sum runs over the selected devices only).
Here each device sends ``n_k (w^k − w_t)``, so that the server adds ``Σ n_k (w^k − w_t) / m_t``: the same point, and a
sum that can be masked. ``server_lr`` multiplies that step; 1 is the paper.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerPhase, ServerState
from covey.types.errors import UpdateNotFiniteError
from covey.types.tensors import Tensors

__all__ = ["MODEL", "add_weighted_mean", "fedavg", "moved", "uniform_mean", "weighted_mean"]

MODEL = "model"
"""Name of the segment that carries the parameters' change."""


def fedavg(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr`` (default 1)."""
    server_lr = settings.get("server_lr", 1.0)
    return Algorithm(
        name="fedavg",
        init=lambda params: ServerState(params),
        phases=(
            ServerPhase(
                shared=lambda state: {},
                apply=lambda state, aggregate: add_weighted_mean(state, aggregate, server_lr),
            ),
        ),
    )


def add_weighted_mean(state: ServerState, aggregate: Aggregate, server_lr: float) -> ServerState:
    """Return the state moved by ``server_lr * Σ n_k Δ_k / Σ n_k``, computed in float64 and rounded once.

    Raises:
        UpdateNotFiniteError: no weight at all, or a result that is not finite.
    """
    delta = weighted_mean(aggregate, MODEL)
    return moved(state, {k: server_lr * v for k, v in delta.items()}, state.extra)


def weighted_mean(aggregate: Aggregate, segment: str) -> dict[str, NDArray[np.float64]]:
    """Return ``Σ n_k Δ_k / Σ n_k`` of a segment that was weighted by examples.

    Raises:
        UpdateNotFiniteError: no weight at all.
    """
    if aggregate.weight <= 0:
        raise UpdateNotFiniteError("aggregate", expected="a weight above 0", got=f"{aggregate.weight:g}")
    return {k: v / aggregate.weight for k, v in aggregate.segments[segment].items()}


def uniform_mean(aggregate: Aggregate, segment: str) -> dict[str, NDArray[np.float64]]:
    """Return ``Σ Δ_k / |S|`` of a segment that was not weighted.

    Under differential privacy metrics are absent, weights are uniform, and the weight is the public number that every
    mean is divided by.

    Raises:
        UpdateNotFiniteError: no weight at all.
    """
    divisor = aggregate.num_devices if aggregate.metrics and aggregate.weight > 0 else aggregate.weight
    if divisor <= 0:
        raise UpdateNotFiniteError("aggregate", expected="a weight above 0", got=f"{divisor:g}")
    return {k: v / divisor for k, v in aggregate.segments[segment].items()}


def moved(state: ServerState, step: Mapping[str, NDArray[np.float64]], extra: Tensors) -> ServerState:
    """Return the parameters moved by ``step`` (added in float64, rounded once), with ``extra`` beside them.

    Raises:
        UpdateNotFiniteError: a result that is not finite.
    """
    params: Tensors = {k: (np.asarray(v, np.float64) + step[k]).astype(v.dtype) for k, v in state.params.items()}
    for what, tensors in (("new parameters", params), ("new server state", extra)):
        if not all(np.isfinite(v).all() for v in tensors.values()):
            raise UpdateNotFiniteError(what, expected="finite values", got="a NaN or an infinity")
    return ServerState(params, extra)
