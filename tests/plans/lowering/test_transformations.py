"""Functions that JAX's own transformations make: vmap, jvp, and derivatives of loops in branches in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .agreement import agree, agree_on_gradients, reals, whole

X = reals(5, 3)
IDS, STARTS = whole(3, 4, low=0, high=5), whole(3, low=0, high=5)


def looped(x):
    return lax.scan(lambda c, r: (jnp.tanh(c + r), c), x[0], x)[1]


def branched(c, r):
    return lax.cond(r[0] > 0, lambda v: jnp.sin(v) + r, lambda v: v * 0.5, c), c


GRADIENTS = {
    "loop in a branch that is taken": (lambda x: lax.cond(x[0, 0] > -9, looped, lambda v: v * 2, x), X),
    "loop in a branch that is not": (lambda x: lax.cond(x[0, 0] > 9, looped, lambda v: v * 2, x), X),
    "branch in a loop": (lambda x: lax.scan(branched, x[0], x), X),
    "loop in a loop": (lambda x: lax.scan(lambda c, a: (c + looped(a)[-1], c), x[0, 0], x), reals(3, 4, 2)),
    "remat in a loop": (lambda x: lax.scan(jax.checkpoint(lambda c, r: (jnp.tanh(c + r), c)), x[0], x), X),
    "outputs that are one value": (lambda x: lax.scan(lambda c, r: (c[::-1], (r, r, c[0])), (x[0], x[1]), x), X),
    "vmap of a loop": (jax.vmap(looped), reals(2, 4, 3)),
    "vmap of a branch": (jax.vmap(lambda r: lax.cond(r[0] > 0, jnp.sin, jnp.cos, r)), X),
    "vmap of a convolution": (
        jax.vmap(lambda x, k: lax.conv(x[None], k, (1, 1), "SAME")), reals(3, 2, 5, 5), reals(3, 4, 2, 3, 3),
    ),
    "vmap of gather": (jax.vmap(lambda x, i: x[i] ** 2), reals(3, 5, 2), IDS),
    "vmap of scatter": (jax.vmap(lambda x, i, v: x.at[i].add(v) ** 2), reals(3, 5, 2), IDS, reals(3, 4, 2)),
    "vmap of a slice": (jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 2)) ** 2), reals(3, 5, 2), STARTS),
    "vmap of an update": (
        jax.vmap(lambda x, i, v: lax.dynamic_update_slice(x, v, (i, 0)) ** 2), reals(3, 5, 2), STARTS, reals(3, 2, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of(name):
    fn, *arrays = GRADIENTS[name]
    agree_on_gradients(fn, *arrays)


def test_gradients_for_each_example():
    """What clipping for differential privacy needs: vmap of grad."""

    def loss(k, x):
        return jnp.sum(jnp.tanh(lax.conv(x[None], k, (1, 1), "SAME")))

    agree(jax.vmap(jax.grad(loss), (None, 0)), reals(4, 2, 3, 3), reals(3, 2, 5, 5))


def test_a_second_derivative():
    agree(lambda x: jax.jvp(jax.grad(lambda v: jnp.sum(jnp.tanh(v @ v.T) ** 3)), (x,), (x * 2,)), X)


def test_a_branch_whose_results_are_its_operands_or_constants():
    for start in (np.float32(1), np.float32(-1)):
        agree(lambda s, x: lax.cond(s > 0, lambda v: (v, v, x), lambda v: (x, v * 1, jnp.ones(v.shape)), x), start, X)
