"""FedSGD, the device half: 1602.05629, section 2. The gradient of the mean loss over all of the device's examples.

The gradient graph sums gradients batch by batch with the parameters fixed, so the batch size only bounds memory: the
result is that of one batch of everything (B = ∞).
"""

from typing import Any

import jax
import jax.numpy as jnp

from covey.plans.task import Local

__all__ = ["fedsgd_local"]


def fedsgd_local(server_lr: float = 0.1, *, max_delta: float = 1000.0) -> Local:
    """Return the device half of FedSGD; ``server_lr`` is the paper's η, applied by the server."""

    def init(params: Any, shared: Any) -> Any:
        return {"gradient": jax.tree.map(jnp.zeros_like, params)}

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        return {"gradient": jax.tree.map(jnp.add, state["gradient"], grad)}

    def finish(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        scale = -1.0 / jnp.maximum(totals["weight"], 1.0)
        return {"model": jax.tree.map(lambda g: g * scale, state["gradient"])}

    return Local(
        algorithm="fedsgd",
        graph="gradient",
        init=init,
        step=step,
        finish=finish,
        hyper=(),
        max_delta={"model": max_delta},
        weighting={"model": "examples"},
        settings={"server_lr": server_lr},
    )
