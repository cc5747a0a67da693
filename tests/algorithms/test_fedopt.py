"""The server optimizers against optax, on a quadratic: every step from the same state."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.registry import server_half

CURVATURE = np.array([0.2, 1.0, 3.0])
TAU, LR = 1e-3, 0.05
EPS = float(np.finfo(np.float32).eps)


def descent(state):
    """Return a cohort's mean change: a step of SGD at 0.5 on half the sum of CURVATURE * w²."""
    return -0.5 * CURVATURE * state.params["w"].astype(np.float64)


def aggregate(delta, weight=7.0):
    return Aggregate(3, weight, {"weight": weight}, {"model": {"w": delta * weight}})


def moment(tag, state):
    return state.extra[f"{tag}/w"]


def reference(name, state, delta):
    """Return (m, v, step) by optax from the same state; optax descends a gradient, which is the negative change.

    Its moments are taken before its correction of bias, which the paper does not have.
    """
    grad = jnp.asarray(-delta, jnp.float32)
    if name == "fedavgm":
        sgd = optax.trace(decay=0.9)
        _, after = sgd.update(grad, optax.TraceState(trace=-jnp.asarray(moment("momentum", state))))
        return (-after.trace,), -after.trace
    m, v = (jnp.asarray(moment(t, state)) for t in ("first_moment", "second_moment"))
    if name == "fedadagrad":
        _, after = optax.scale_by_rss(eps=0.0).update(grad, optax.ScaleByRssState(sum_of_squares=v))
        m, v = -grad, after.sum_of_squares
    else:
        make = {"fedadam": optax.scale_by_adam, "fedyogi": optax.scale_by_yogi}[name]
        before = optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=-m, nu=v)
        _, after = make(b1=0.9, b2=0.99).update(grad, before)
        m, v = -after.mu, after.nu
    return (m, v), m / (jnp.sqrt(v) + TAU)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_every_step_is_optaxs_from_the_same_state(name):
    settings = {"server_lr": LR} | ({} if name == "fedavgm" else {"tau": TAU})
    half = server_half(name, settings)
    state = half.init({"w": np.array([1.0, -2.0, 0.5], np.float32)})
    for _ in range(200):
        delta = descent(state)
        moments, step = reference(name, state, delta)
        after = half.phases[0].apply(state, aggregate(delta))
        for ours, theirs in zip(after.extra.values(), moments, strict=True):
            # Optax rounds the gradient and each of three operations to float32, ours once; a difference of two terms
            # is as exact as the larger of them.
            scale = max(float(np.abs(delta).max()), float(np.abs(ours).max()))
            assert np.abs(ours - np.asarray(theirs)).max() <= 5 * EPS * max(scale, scale**2)
        moved = after.params["w"].astype(np.float64) - state.params["w"]
        # Eight more roundings in the step, relative to it, and ours of the new parameters.
        bound = 24 * EPS * np.abs(LR * np.asarray(step, np.float64)) + EPS * np.abs(state.params["w"]).max()
        assert (np.abs(moved - LR * np.asarray(step, np.float64)) <= bound).all()
        state = after
    assert np.abs(state.params["w"]).max() < (0.2 if name != "fedadagrad" else 1.0)  # it goes down, from 2


def test_the_first_step_of_each_by_hand():
    params = {"w": np.array([1.0], np.float32)}
    delta, tau = np.array([0.25]), 0.5
    first = {"v0": tau**2, "square": 0.0625}
    expected = {
        "fedadagrad": 0.25 / (np.sqrt(first["v0"] + first["square"]) + tau),
        "fedadam": 0.1 * 0.25 / (np.sqrt(0.99 * first["v0"] + 0.01 * first["square"]) + tau),
        "fedyogi": 0.1 * 0.25 / (np.sqrt(first["v0"] - 0.01 * first["square"]) + tau),
    }
    for name, step in expected.items():
        half = server_half(name, {"server_lr": 1.0, "tau": tau})
        after = half.phases[0].apply(half.init(params), aggregate(delta))
        assert after.params["w"][0] == np.float32(1.0 + step)
    momentum = server_half("fedavgm", {"server_lr": 0.5, "beta": 0.5})
    state: ServerState = momentum.init(params)
    for position in (1.125, 1.3125):  # v = 0.25, then 0.375
        state = momentum.phases[0].apply(state, aggregate(delta))
        assert state.params["w"][0] == np.float32(position)
