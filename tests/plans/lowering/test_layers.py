"""Gradients of whole layers, as training makes them, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covey.models.lstm import lstm

from .agreement import agree, agree_on_gradients, reals, whole

IMAGE = reals(2, 4, 9, 8)


def conv(strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1, layout=("NCHW", "OIHW", "NCHW")):
    return lambda x, k: lax.conv_general_dilated(
        x, k, strides, padding, rhs_dilation=dilation, feature_group_count=groups, dimension_numbers=layout
    )


def pooled(window, strides, padding="VALID", reducer=lax.max):
    start = -np.inf if reducer is lax.max else 0.0
    return lambda x: lax.reduce_window(x, start, reducer, (1, 1, *window), (1, 1, *strides), padding)


def test_dense_layers_with_relu():
    def mlp(x, w1, b1, w2, b2):
        return jax.nn.relu(x @ w1 + b1) @ w2 + b2

    agree_on_gradients(mlp, reals(5, 6), reals(6, 8), reals(8, seed=1), reals(8, 3, seed=2), reals(3, seed=3))


CONVOLUTIONS = {
    "plain": (conv(), (6, 4, 3, 3)),
    "strided": (conv((2, 3)), (6, 4, 3, 3)),
    "strided_with_a_remainder": (conv((2, 2), "VALID"), (6, 4, 2, 3)),
    "grouped": (conv(groups=2), (6, 2, 3, 3)),
    "depthwise_strided": (conv((2, 2), groups=4), (8, 1, 3, 3)),
    "dilated": (conv(dilation=(2, 3), padding=((2, 1), (3, 3))), (6, 4, 3, 3)),
    "dilated_grouped_strided": (conv((2, 1), ((1, 2), (0, 3)), (2, 2), 2), (4, 2, 2, 3)),
    "channels_last": (conv((2, 2), layout=("NHWC", "HWIO", "NHWC")), (3, 3, 8, 5)),
    "cropped": (conv(padding=((-1, 2), (0, -2))), (6, 4, 2, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    fn, shape = CONVOLUTIONS[name]
    agree_on_gradients(fn, IMAGE, reals(*shape, seed=1))


def test_convolution_in_one_and_three_dimensions():
    agree_on_gradients(lambda x, k: lax.conv(x, k, (2,), "SAME"), reals(2, 3, 9), reals(4, 3, 4, seed=1))
    agree_on_gradients(lambda x, k: lax.conv(x, k, (2, 1, 1), "VALID"), reals(1, 2, 5, 4, 4), reals(3, 2, 2, 3, 2))


def test_transposed_convolution():
    agree_on_gradients(
        lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")),
        IMAGE[:, :, :4, :5],
        reals(3, 4, 3, 3, seed=1),
    )


POOLS = {
    "mean": pooled((2, 2), (2, 2), reducer=lax.add),
    "mean_overlapping_padded": pooled((3, 2), (2, 1), "SAME", lax.add),
    "max": pooled((2, 2), (2, 2)),
    "max_with_a_remainder": pooled((2, 3), (2, 3)),
    "max_overlapping": pooled((3, 3), (2, 2)),
    "max_overlapping_padded": pooled((3, 3), (2, 1), "SAME"),
    "max_gapped": pooled((2, 2), (3, 3)),
    "max_padded_by_whole_windows": pooled((2, 2), (1, 1), ((0, 0), (0, 0), (2, 3), (0, 2))),
    "max_over_time": lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 3, 1, 1), (1, 1, 1, 1), "VALID"),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling(name):
    agree_on_gradients(POOLS[name], IMAGE)


def test_pooling_sends_the_gradient_of_a_tie_to_the_same_place():
    """After a ReLU, windows of nothing but zeros are common."""
    relu = lambda x: jax.nn.relu(x - 0.8)  # noqa: E731
    for name in ("max", "max_overlapping"):
        agree_on_gradients(lambda x, pool=POOLS[name]: pool(relu(x) + 0 * x) + pool(0 * x), IMAGE)
        agree(jax.grad(lambda x, pool=POOLS[name]: jnp.sum(pool(jnp.round(x)) ** 2)), IMAGE)


def test_layer_norm():
    def layer_norm(x, scale, shift):
        mean = jnp.mean(x, -1, keepdims=True)
        return (x - mean) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * scale + shift

    agree_on_gradients(layer_norm, reals(4, 3, 8), reals(8, seed=1), reals(8, seed=2))


def gru(x, w, u, b):
    def step(h, at):
        gates = at @ w + b
        z, r, n = jnp.split(gates, 3, -1)
        uz, ur, un = jnp.split(h @ u, 3, -1)
        z, r = jax.nn.sigmoid(z + uz), jax.nn.sigmoid(r + ur)
        h = (1 - z) * jnp.tanh(n + r * un) + z * h
        return h, h

    return lax.scan(step, jnp.zeros((x.shape[1], u.shape[0])), x)


def plain_lstm(x, w, u, b):
    def step(carry, at):
        h, c = carry
        i, f, g, o = jnp.split(at @ w + h @ u + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], u.shape[0]))
    return lax.scan(step, (zeros, zeros), x)[1]


@pytest.mark.parametrize("cell,gates", [(gru, 3), (plain_lstm, 4)])
def test_recurrent_layers(cell, gates):
    x, w, u, b = reals(6, 2, 3), reals(3, gates * 5), reals(5, gates * 5, seed=1), reals(gates * 5, seed=2)
    agree_on_gradients(cell, x, w * np.float32(0.4), u * np.float32(0.4), b)


def test_recurrent_layer_with_a_reversed_scan():
    agree_on_gradients(lambda x, w: lax.scan(lambda h, r: (jnp.tanh(h @ w + r),) * 2, x[0], x, reverse=True),
                       reals(5, 2, 4), reals(4, 4, seed=1) * np.float32(0.5))  # fmt: skip


def test_the_lstm_with_a_derivative_of_its_own():
    def run(x, w, b, u):
        return lstm({"input": {"w": w, "b": b}, "recurrent": u}, x)

    agree_on_gradients(run, reals(5, 2, 3), reals(3, 16), reals(16, seed=1), reals(4, 16, seed=2) * np.float32(0.5))


def test_multi_head_attention():
    def attention(x, wq, wk, wv, wo):
        b, t, e = x.shape
        q, k, v = ((x @ w).reshape(b, t, 2, e // 2) for w in (wq, wk, wv))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (e // 2) ** 0.5
        causal = jnp.tril(jnp.ones((t, t), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9), -1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, t, e) @ wo

    agree_on_gradients(attention, reals(2, 5, 8), *(reals(8, 8, seed=i) * np.float32(0.3) for i in range(4)))


def test_dropout_through_a_mask():
    agree_on_gradients(lambda x, w, kept: jnp.where(kept, x / 0.7, 0.0) @ w, reals(5, 6), reals(6, 4), reals(5, 6) > 0)


def test_embedding_by_gather():
    ids = whole(4, 5, low=0, high=7)
    agree_on_gradients(lambda table, ids: jnp.sin(table[ids]), reals(7, 3), ids)
    agree_on_gradients(lambda t, ids: t.at[ids].get(mode="promise_in_bounds") ** 2, reals(7, 3), ids)
    agree_on_gradients(lambda t, ids: jnp.take(t, ids, axis=1, mode="clip") ** 2, reals(3, 7), ids + 3)


def test_cross_entropy_by_take_along_axis_and_logsumexp():
    def loss(logits, labels):
        return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]

    agree_on_gradients(loss, reals(6, 5) * np.float32(10), whole(6, low=0, high=5))
    agree_on_gradients(lambda x, y: -jnp.sum(jax.nn.one_hot(y, 5) * jax.nn.log_softmax(x), -1),
                       reals(6, 5), whole(6, low=0, high=5))  # fmt: skip


PIECES = {
    "where": lambda x: jnp.where(x > 0, jnp.sin(x), x**2),
    "cumsum": lambda x: jnp.cumsum(x, 1) ** 2,
    "cumprod": lambda x: jnp.cumprod(x, 0),
    "argmax": lambda x: jnp.take_along_axis(x, jnp.argmax(x, 1)[:, None], 1) ** 2,
    "top_k": lambda x: lax.top_k(x, 3)[0] ** 2,
    "sort": lambda x: jnp.sort(x, 0) ** 2 * jnp.arange(1.0, 7)[:, None],
    "max": lambda x: jnp.max(x, 1) ** 2,
    "prod": lambda x: jnp.prod(x, 1),
    "std": lambda x: jnp.std(x, 0),
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
    "hard_swish": jax.nn.hard_swish,
    "erf": jax.scipy.special.erf,
    "logsumexp": lambda x: jax.nn.logsumexp(x, 0),
    "norm": lambda x: jnp.linalg.norm(x, axis=1),
    "roll": lambda x: jnp.roll(x, 2, 1) * x,
    "pad": lambda x: jnp.pad(x, ((1, 2), (0, 1)), mode="edge") ** 2,
    "reflect": lambda x: jnp.pad(x, 2, mode="reflect") ** 2,
    "repeat": lambda x: jnp.repeat(x, 3, 1) ** 2,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5) * x,
    "remat": jax.checkpoint(lambda x: jnp.sin(jnp.tanh(x))),
    "cond": lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda v: v**2, x),
    "update": lambda x: x.at[1:3, 2].set(0.0).at[0].add(x[1]) ** 2,
}


@pytest.mark.parametrize("name", PIECES)
def test_functions_that_losses_use(name):
    agree_on_gradients(PIECES[name], reals(6, 5))
