"""MimeLite with momentum, the device half of both phases: 2008.03606, Algorithm 1.

What is sent, and what becomes of it, stands in :mod:`covey.algorithms.mimelite`.
"""

import dataclasses
from typing import Any

import jax

from covey.algorithms.local.fedavg import fedavg_local
from covey.algorithms.local.fedsgd import fedsgd_local
from covey.plans.task import Local

__all__ = ["mimelite_local"]


def mimelite_local(lr: float = 0.1, *, beta: float = 0.9, server_lr: float = 1.0) -> tuple[Local, Local]:
    """Return the device half of both phases.

    Args:
        lr: η, of the local steps.
        beta: β: how much of a step is the broadcast momentum.
        server_lr: see :mod:`covey.algorithms.mimelite`.
    """
    train, gradient = fedavg_local(lr), fedsgd_local()

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        mixed = jax.tree.map(lambda g, m: (1 - beta) * g + beta * m, grad, shared["momentum"])
        return train.step(state, shared, mixed, hyper)

    def observed(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        change = gradient.finish(state, params, shared, totals)["model"]  # FedSGD sends the descent direction
        return {"gradient": jax.tree.map(lambda g: -g, change)}

    (most,) = gradient.max_delta.values()
    settings = {"server_lr": server_lr, "beta": beta}
    return (
        dataclasses.replace(
            train, algorithm="mimelite", step=step, shared=lambda params: {"momentum": params}, settings=settings
        ),
        dataclasses.replace(
            gradient,
            algorithm="mimelite",
            finish=observed,
            max_delta={"gradient": most},
            weighting={"gradient": "examples"},
            settings=settings,
        ),
    )
