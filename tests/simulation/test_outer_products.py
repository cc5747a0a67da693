"""The rewritten step: the same numbers but for the order of additions, and no product of a small batch left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covey.simulation.rewriting import rewritten as better

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def sgd(carry, constant, x):
    """A step of two layers, the second within a function of its own, under the mean square."""

    def loss(w):
        hidden = jax.nn.relu(x["x"] @ w["first"])
        return jnp.mean(jax.jit(jnp.matmul)(hidden, w["second"]) ** 2)

    return {k: carry[k] - constant["lr"] * g for k, g in jax.grad(loss)(carry).items()}


def products(step, *arguments):
    """Return the shapes that a step's matrix products have, of all that XLA is given."""
    text = jax.jit(step).lower(*arguments).as_text()
    return [line.rpartition("->")[2].strip() for line in text.splitlines() if "dot_general" in line]


@pytest.mark.parametrize(("batch", "rewritten"), [(1, True), (10, True), (16, True), (17, False)])
def test_a_step_gives_the_same_numbers_and_only_small_batches_are_rewritten(batch, rewritten):
    carry = {"first": drawn(70, 90), "second": drawn(90, 80)}
    constant, x = {"lr": np.float32(0.1)}, {"x": drawn(batch, 70)}
    step = better(sgd)
    expected, found = sgd(carry, constant, x), jax.jit(step)(carry, constant, x)
    for name, after in expected.items():
        change = np.asarray(after) - carry[name]
        # Sums of at most 17 terms in two orders: each off by 16 roundings of 2^-24 of the terms' magnitudes at most.
        largest = batch * np.abs(change).max()
        np.testing.assert_allclose(found[name] - carry[name], change, atol=32 * 2.0**-24 * largest + 1e-6, rtol=0)
    left = products(step, carry, constant, x)
    assert len(products(sgd, carry, constant, x)) == 5
    assert len(left) == (3 if rewritten else 5)


def test_small_results_and_other_products_stay_as_they_are():
    def step(carry, constant, x):
        return {"small": x["a"].T @ x["b"], "other": x["a"] @ x["a"].T, "batched": x["c"] @ x["c"]}

    arguments = ({}, {}, {"a": drawn(4, 8), "b": drawn(4, 8), "c": drawn(3, 64, 64)})
    assert products(better(step), *arguments) == products(step, *arguments)
    found = jax.jit(better(step))(*arguments)
    assert all(np.array_equal(found[k], v) for k, v in jax.jit(step)(*arguments).items())


def test_what_is_not_finite_stays_so():
    carry = {"first": drawn(70, 90), "second": drawn(90, 80)}
    constant, x = {"lr": np.float32(0.1)}, {"x": np.full((10, 70), np.inf, np.float32)}
    after = jax.jit(better(sgd))(carry, constant, x)
    assert not all(np.isfinite(v).all() for v in after.values())
