"""FedProx, the device half: 1812.06127, equation 2.

``h_k(w; w_t) = F_k(w) + (μ/2) ‖w − w_t‖²``, so that a step's gradient is ``∇ℓ(w; b) + μ (w − w_t)``. The anchor
``w_t`` is the checkpoint itself, which every step reads; nothing more is broadcast. An Assignment may set μ each
round within bounds (the paper's section 5.3.2 adapts it to the loss).
"""

import dataclasses
from typing import Any

import jax

from covey.algorithms.local.fedavg import fedavg_local
from covey.plans.manifest import HyperBound
from covey.plans.task import ANCHOR, Local

__all__ = ["fedprox_local"]

_MOST_MU = 10.0


def fedprox_local(lr: float = 0.1, *, mu: float = 0.01, optimizer: str = "sgd", server_lr: float = 1.0) -> Local:
    """Return the device half of FedProx.

    Args:
        lr: the learning rate, as in :func:`covey.algorithms.local.fedavg.fedavg_local`.
        mu: μ, 0 (Federated Averaging) to 10; an Assignment may set another within these bounds.
        optimizer: the devices' own.
        server_lr: see :mod:`covey.algorithms.fedavg`.
    """
    local = fedavg_local(lr, optimizer=optimizer, server_lr=server_lr)

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        mu_now, anchor = hyper["mu"], shared[ANCHOR]
        pulled = jax.tree.map(lambda g, w, a: g + mu_now * (w - a), grad, state["params"], anchor)
        return local.step(state, shared, pulled, hyper)

    bound = HyperBound(name="mu", default=mu, low=0.0, high=_MOST_MU)
    return dataclasses.replace(local, algorithm="fedprox", step=step, hyper=(*local.hyper, bound), anchored=True)
