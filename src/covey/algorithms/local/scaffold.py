"""SCAFFOLD, the device half: 1910.06378, Algorithm 1, with option II for the control variate.

The device's own variate ``c_i`` comes in and goes out as the state ``kept``, which its trainer stores on the device; it
starts at zero. ``K η_l`` is carried as the sum of the steps' learning rates.
"""

from typing import Any

import jax
import jax.numpy as jnp

from covey.plans.manifest import HyperBound
from covey.plans.task import KEPT, Local

__all__ = ["scaffold_local"]


def scaffold_local(
    lr: float = 0.1,
    *,
    num_devices: int,
    server_lr: float = 1.0,
    max_delta: float = 16.0,
    max_control: float = 1000.0,
) -> Local:
    """Return the device half of SCAFFOLD.

    Args:
        lr: η_l, of plain SGD.
        num_devices: N, of the population: the server's variate is the mean over all of them.
        server_lr: η_g.
        max_delta: largest magnitude of one parameter's change in one session.
        max_control: the same of one coordinate of the control variate: about that of a gradient.
    """
    bound = HyperBound(name="lr", default=lr, low=lr / 1000, high=lr * 1000)

    def init(params: Any, shared: Any) -> Any:
        return {"params": params, "lrs": jnp.float32(0)}

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        lr_now, own, common = hyper["lr"], shared[KEPT]["control"], shared["control"]
        after = jax.tree.map(lambda y, g, c_i, c: y - lr_now * (g - c_i + c), state["params"], grad, own, common)
        return {"params": after, "lrs": state["lrs"] + lr_now}

    def finish(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        # At least one step at the least learning rate was taken.
        scale = 1.0 / jnp.maximum(state["lrs"], bound.low)
        change = jax.tree.map(lambda c, x, y: (x - y) * scale - c, shared["control"], params, state["params"])
        return {
            "model": jax.tree.map(lambda y, x: y - x, state["params"], params),
            "control": change,
            KEPT: {"control": jax.tree.map(jnp.add, shared[KEPT]["control"], change)},
        }

    return Local(
        algorithm="scaffold",
        graph="train",
        init=init,
        step=step,
        finish=finish,
        hyper=(bound,),
        max_delta={"model": max_delta, "control": max_control},
        weighting={"model": "none", "control": "none"},
        shared=lambda params: {"control": params},
        kept=lambda params: {"control": params},
        settings={"server_lr": server_lr, "num_devices": float(num_devices)},
    )
