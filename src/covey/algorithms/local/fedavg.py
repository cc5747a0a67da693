"""Federated Averaging, the device half: 1602.05629, Algorithm 1, ``ClientUpdate``.

``for each local epoch, for each batch b of size B: w ← w − η ∇ℓ(w; b)``. The paper uses plain SGD; momentum and Adam
are offered as local optimizers whose state starts afresh each session.
"""

from typing import Any

import jax
import optax

from covey.plans.manifest import HyperBound
from covey.plans.task import Local
from covey.types.errors import UsageError

__all__ = ["fedavg_local", "local_optimizer"]


def local_optimizer(name: str, lr: Any, momentum: float = 0.9) -> optax.GradientTransformation:
    """Return the local optimizer ``sgd``, ``momentum`` or ``adam`` with a learning rate that may be traced.

    Raises:
        UsageError: no such optimizer.
    """
    if name == "sgd":
        return optax.sgd(lr)
    if name == "momentum":
        return optax.sgd(lr, momentum=momentum)
    if name == "adam":
        return optax.adam(lr)
    raise UsageError("optimizer", expected="sgd, momentum or adam", got=name)


def fedavg_local(lr: float = 0.1, *, optimizer: str = "sgd", server_lr: float = 1.0, max_delta: float = 16.0) -> Local:
    """Return the device half of Federated Averaging.

    Args:
        lr: the learning rate η; an Assignment may set it between a thousandth and a thousand times this value.
        optimizer: ``sgd`` (the paper), ``momentum`` or ``adam``.
        server_lr: see :mod:`covey.algorithms.fedavg`.
        max_delta: largest magnitude of one parameter's change in one session.
    """
    local_optimizer(optimizer, lr)  # refuse a misspelt name here, not while a graph is traced

    def init(params: Any, shared: Any) -> Any:
        return {"params": params, "optimizer": local_optimizer(optimizer, lr).init(params)}

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        updates, inner = local_optimizer(optimizer, hyper["lr"]).update(grad, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": inner}

    def finish(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        return {"model": jax.tree.map(lambda new, old: new - old, state["params"], params)}

    return Local(
        algorithm="fedavg",
        graph="train",
        init=init,
        step=step,
        finish=finish,
        hyper=(HyperBound(name="lr", default=lr, low=lr / 1000, high=lr * 1000),),
        max_delta={"model": max_delta},
        weighting={"model": "examples"},
        settings={"server_lr": server_lr},
    )
