"""Structured updates, the device half: train only what is sent (1610.05492, section 2).

What may move is drawn by the device from the public seed of its session (or of the round, where sums are masked), fresh
each time, and reaches the graph as broadcast tensors, beside what the algorithm itself broadcasts:

- *random mask*: ``trained/<parameter>`` (bool). A gradient outside the mask is zero before the local optimizer sees it.
- *low rank*: ``basis`` (float32, ``[width, rank]``, orthonormal columns). The update, as a matrix with rows of that
  width, is ``B A^T``, and what is left at the end is trained whole; the gradient is projected, ``G A A^T``, which is
  what training B by gradient descent does to it. That holds for optimizers that are linear in the gradient (sgd,
  momentum): others would leave the space.

Other parameters, or directions, do not move, and nothing about them is sent.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from covey.plans.lowering.programs import named_leaves
from covey.plans.manifest import BASIS, TRAINED
from covey.plans.task import ANCHOR, Local
from covey.types.errors import UsageError

__all__ = ["low_rank_in_place", "masked_in_place"]

_OWN = "broadcast"


def masked_in_place(local: Local) -> Local:
    """Return ``local`` with its gradients masked. The plan's codec must name the mask: ``mask:P|...``.

    Raises:
        UsageError: the algorithm does not train one model on the device.
    """

    def masked(grad: Any, masks: Any) -> Any:
        return jax.tree.map(lambda g, trained: jnp.where(trained, g, 0.0), grad, masks)

    return _restricted(local, TRAINED, lambda params: jax.tree.map(_no_mask, params), masked)


def low_rank_in_place(local: Local, width: int, rank: int) -> Local:
    """Return ``local`` with its gradients projected. The plan's codec must name the rank: ``lowrank:K|...``.

    Args:
        local: with an optimizer that is linear in the gradient.
        width: of the update's rows.
        rank: how many of their dimensions are trained.

    Raises:
        UsageError: the algorithm does not train one model on the device.
    """
    return _restricted(local, BASIS, lambda params: jnp.zeros((width, rank), jnp.float32), _projected)


def _projected(grad: Any, basis: Any) -> Any:
    """Project a gradient, its leaves end to end in the order in which an update is sent."""
    leaves, structure = jax.tree.flatten(grad)
    names = list(named_leaves(grad, "gradient"))
    order = sorted(range(len(leaves)), key=lambda i: names[i])
    flat = jnp.concatenate([leaves[i].reshape(-1) for i in order])
    width = basis.shape[0]
    whole = flat.size - flat.size % width
    moved = ((flat[:whole].reshape(-1, width) @ basis) @ basis.T).reshape(-1)
    moved = jnp.concatenate([moved, flat[whole:]])
    out, start = list(leaves), 0
    for i in order:
        out[i] = moved[start : start + leaves[i].size].reshape(leaves[i].shape)
        start += leaves[i].size
    return jax.tree.unflatten(structure, out)


def _no_mask(param: Any) -> Any:
    return jnp.zeros(param.shape, jnp.bool_)


def _restricted(local: Local, name: str, drawn: Callable[[Any], Any], restrict: Callable[[Any, Any], Any]) -> Local:
    """Return ``local`` whose gradients are restricted by what is drawn: ``drawn`` gives its shapes from the params'."""
    if local.graph != "train" or set(local.max_delta) != {"model"}:
        raise UsageError(
            "--compression mask, lowrank",
            expected="an algorithm that trains one model on the device",
            got=local.algorithm,
            hint="fedavg; or a spec that subsamples a finished update, as hd|subsample:P|quantize:2",
        )

    def shared(params: Any) -> Any:
        return {name: drawn(params), _OWN: {} if local.shared is None else local.shared(params)}

    def init(params: Any, shared: Any) -> Any:
        return local.init(params, shared[_OWN])

    def step(state: Any, shared: Any, grad: Any, hyper: Any) -> Any:
        own = {**shared[_OWN], ANCHOR: shared[ANCHOR]} if local.anchored else shared[_OWN]
        return local.step(state, own, restrict(grad, shared[name]), hyper)

    def finish(state: Any, params: Any, shared: Any, totals: Any) -> Any:
        return local.finish(state, params, shared[_OWN], totals)

    return dataclasses.replace(local, shared=shared, init=init, step=step, finish=finish)
