"""FedNova, the device half: 2007.07481, section 4.

Federated Averaging's steps, counted: ``‖a_i‖₁`` is the number of steps for SGD, and for momentum ρ the sum of
``1 + ρ + … + ρ^(j-1)`` over the steps j, which the loop carries.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from covey.algorithms.local.fedavg import fedavg_local
from covey.plans.task import Local
from covey.types.errors import UsageError

__all__ = ["fednova_local"]

_RHO = {"sgd": 0.0, "momentum": 0.9}


def fednova_local(lr: float = 0.1, *, most_steps: int, optimizer: str = "sgd", server_lr: float = 1.0) -> Local:
    """Return the device half of FedNova.

    Args:
        lr: the learning rate, as in :func:`covey.algorithms.local.fedavg.fedavg_local`.
        most_steps: T: the number of steps travels as a fraction of it. No device may take more.
        optimizer: ``sgd`` or ``momentum``, for which the paper gives ``‖a_i‖₁``.
        server_lr: see :mod:`covey.algorithms.fednova`.

    Raises:
        UsageError: another optimizer.
    """
    if optimizer not in _RHO:
        raise UsageError("--optimizer", expected="sgd or momentum with fednova", got=optimizer)
    local, rho = fedavg_local(lr, optimizer=optimizer, server_lr=server_lr), _RHO[optimizer]

    def init(params: Any, shared: Any) -> Any:
        return {**local.init(params, shared), "length": jnp.float32(0), "stride": jnp.float32(0)}

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        inner = {k: state[k] for k in ("params", "optimizer")}
        stride = rho * state["stride"] + 1.0
        return {**local.step(inner, shared, grad, hyper), "length": state["length"] + stride, "stride": stride}

    def finish(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        length = jnp.maximum(state["length"], 1.0)
        delta = jax.tree.map(lambda w, x: (w - x) / length, state["params"], params)
        return {"model": delta, "steps": {"value": jnp.reshape(length / most_length, (1,))}}

    most_length = most_steps / (1.0 - rho)
    return dataclasses.replace(
        local,
        algorithm="fednova",
        init=init,
        step=step,
        finish=finish,
        max_delta={**local.max_delta, "steps": 1.0},
        weighting={**local.weighting, "steps": "examples"},
        exact=("steps",),
        settings={"server_lr": server_lr, "most_steps": most_length},
    )
