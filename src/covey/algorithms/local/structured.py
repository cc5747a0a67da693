"""Structured updates, the device half: train only the entries that a random mask leaves free (1610.05492, section 2).

The mask is drawn by the device from the session's public seed, fresh for each session, and reaches the graph as the
broadcast tensors ``trained/<parameter>`` (bool), beside what the algorithm itself broadcasts. A gradient outside the
mask is zero before the local optimizer sees it, so that those parameters do not move and nothing about them is sent.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from covey.plans.manifest import TRAINED
from covey.plans.task import Local
from covey.types.errors import UsageError

__all__ = ["trained_in_place"]

_OWN = "broadcast"


def trained_in_place(local: Local) -> Local:
    """Return ``local`` with its gradients masked. The plan's codec must name the mask: ``mask:P|...``.

    Raises:
        UsageError: the algorithm does not train on the device, or moves parameters without a gradient.
    """
    if local.graph != "train" or set(local.max_delta) != {"model"}:
        raise UsageError(
            "--compression mask",
            expected="an algorithm that trains one model on the device",
            got=local.algorithm,
            hint="fedavg; or a spec that subsamples a finished update, as hd|subsample:P|quantize:2",
        )

    def shared(params: Any) -> Any:
        own = {} if local.shared is None else local.shared(params)
        return {TRAINED: jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bool_), params), _OWN: own}

    def init(params: Any, shared: Any) -> Any:
        return local.init(params, shared[_OWN])

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        masked = jax.tree.map(lambda g, trained: jnp.where(trained, g, 0.0), grad, shared[TRAINED])
        return local.step(state, shared[_OWN], masked, hyper)

    def finish(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        return local.finish(state, params, shared[_OWN], totals)

    return dataclasses.replace(local, shared=shared, init=init, step=step, finish=finish)
