"""Random shapes and parameters for the rules whose axes can be arranged in many ways."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from .agreement import agree, reals, whole

few = settings(max_examples=12, deadline=None)
sizes = st.integers(1, 4)


@st.composite
def contractions(draw):
    """Draw two shapes and the dimension numbers of their product: each axis is batch, contracted or free."""
    batch, contract = draw(st.lists(sizes, max_size=2)), draw(st.lists(sizes, max_size=2))
    shapes, numbers = [], []
    for free in (draw(st.lists(sizes, max_size=2)), draw(st.lists(sizes, max_size=2))):
        all_sizes = [*batch, *contract, *free]
        order = draw(st.permutations(range(len(all_sizes))))
        shapes.append([all_sizes[i] for i in order])
        places = [order.index(i) for i in range(len(all_sizes))]
        numbers.append((places[: len(batch)], places[len(batch) : len(batch) + len(contract)]))
    (batch_a, contract_a), (batch_b, contract_b) = numbers
    return *shapes, ((tuple(contract_a), tuple(contract_b)), (tuple(batch_a), tuple(batch_b)))


@few
@given(contractions(), st.booleans())
def test_dot_general(case, integers):
    a, b, numbers = case
    make = whole if integers else reals
    agree(lambda x, y: lax.dot_general(x, y, numbers), make(*a), make(*b, seed=1))


@few
@given(st.lists(sizes, max_size=4), st.data())
def test_elementwise_broadcasting(shape, data):
    """Three operands, each without some leading axes and with some axes of length 1; lazily broadcast inside."""
    drawn = []
    for seed in range(3):
        cut = data.draw(st.integers(0, len(shape)))
        drawn.append(reals(*(data.draw(st.sampled_from([1, n])) for n in shape[cut:]), seed=seed))

    def fn(a, b, c):
        total = jnp.where(a > b, a * c, b - 0.5) + jnp.ones(shape)
        return total, jnp.sum(total), jnp.broadcast_to(a, jnp.broadcast_shapes(a.shape, b.shape)).T

    agree(fn, *drawn)


@few
@given(st.lists(sizes, min_size=1, max_size=4), st.data())
def test_reductions_over_any_axes(shape, data):
    axes = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    axis = data.draw(st.integers(0, len(shape) - 1))

    def fn(x, n):
        narrow = jnp.broadcast_to(x[..., :1], x.shape)
        sums = [jnp.sum(narrow, axes), jnp.max(narrow, axes), jnp.sum(n, axes), jnp.prod(n, axes), jnp.any(n > 3, axes)]
        return *sums, jnp.prod(x, axes), jnp.mean(x, axes), jnp.argmax(n, axis), jnp.cumsum(n, axis)

    agree(fn, reals(*shape), whole(*shape))


@st.composite
def convolutions(draw):
    """Draw the shapes and parameters of a convolution whose result is not empty."""
    dims = draw(st.integers(1, 2))
    groups, inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, strides, dilation, spread = draw(each), draw(each), draw(each), draw(st.tuples(*[st.integers(1, 2)] * dims))
    space = draw(st.tuples(*[st.integers(3, 7)] * dims))
    padding = draw(st.tuples(*[st.tuples(st.integers(-1, 3), st.integers(-1, 3))] * dims))
    for n, k, d, s, (a, b) in zip(space, kernel, dilation, spread, padding, strict=True):
        assume((n - 1) * s + 1 + a + b >= (k - 1) * d + 1)
    x, w = (2, groups * inputs, *space), (groups * outputs, inputs, *kernel)
    return x, w, functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=padding, rhs_dilation=dilation, lhs_dilation=spread,
        feature_group_count=groups,
    )  # fmt: skip


@few
@given(convolutions())
def test_convolution_and_its_gradients(case):
    x, w, conv = case

    def total(x, w):
        out = conv(x, w)
        return jnp.sum(out * np.sin(1 + np.arange(out.size, dtype=np.float32)).reshape(out.shape)), out

    agree(jax.grad(total, (0, 1), has_aux=True), reals(*x), reals(*w, seed=1))


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.lists(sizes, max_size=2), st.data())
def test_gather_and_its_gradient(table, shape, data):
    axis = data.draw(st.integers(0, len(table) - 1))
    mode = data.draw(st.sampled_from(["clip", "fill", "wrap"]))
    ids = whole(*shape, low=-6, high=7)

    def total(x, ids):
        out = jnp.take(x, ids, axis, mode=mode, fill_value=0.5)
        return jnp.sum(out * np.sin(1 + np.arange(out.size, dtype=np.float32)).reshape(out.shape)), out

    agree(jax.grad(total, has_aux=True), reals(*table), ids)


@few
@given(st.data())
def test_dynamic_slices_anywhere(data):
    shape = data.draw(st.lists(sizes, min_size=1, max_size=3))
    box = [data.draw(st.integers(1, n)) for n in shape]
    starts = [np.int32(data.draw(st.integers(-2, 5))) for _ in shape]
    agree(lambda x, v, *at: (lax.dynamic_slice(x, at, box), lax.dynamic_update_slice(x, v, at)),
          reals(*shape), reals(*box, seed=1), *starts)  # fmt: skip


@few
@given(st.data())
def test_scatter_of_windows_at_computed_places(data):
    """``x.at[i, :, j]`` with missing places: the general scatter, its windows in the middle."""
    shape = data.draw(st.tuples(sizes, sizes, sizes))
    count = data.draw(sizes)
    i, j = whole(count, low=-5, high=6), whole(count, low=-5, high=6, seed=1)
    agree(lambda x, i, j, v: (x.at[i, :, j].add(v), x.at[:, i].mul(2.0), x.at[i, :, j].get(mode="fill")),
          reals(*shape), i, j, reals(count, shape[1], seed=1))  # fmt: skip


@st.composite
def pools(draw):
    """Draw the shape and window of a pooling on some of four axes; padding is less than the window."""
    shape = draw(st.tuples(st.integers(1, 2), *[st.integers(2, 6)] * 3))
    on = draw(st.sets(st.integers(0, 3), max_size=3))
    window = [draw(st.integers(1, min(3, n))) if d in on else 1 for d, n in enumerate(shape)]
    strides = [draw(st.integers(1, 3)) if d in on else 1 for d in range(4)]
    padding = [(draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in window]
    return shape, window, strides, padding


@few
@given(pools())
def test_pooling_and_its_gradients(case):
    shape, *windows = case

    def total(x):
        best = lax.reduce_window(x, -np.inf, lax.max, *windows)
        mean = lax.reduce_window(x, 0.0, lax.add, *windows) / math.prod(windows[0])
        weights = np.sin(1 + np.arange(best.size, dtype=np.float32)).reshape(best.shape)
        return jnp.sum((best + mean) * weights), (best, mean)

    agree(jax.grad(total, has_aux=True), reals(*shape))


@few
@given(st.data())
def test_moving_elements(data):
    shape = data.draw(st.lists(sizes, min_size=1, max_size=4))
    rank = len(shape)
    first, second = data.draw(st.permutations(range(rank))), data.draw(st.permutations(range(rank)))
    axes = tuple(data.draw(st.sets(st.integers(0, rank - 1))))
    edges = [data.draw(st.tuples(st.integers(-1, 2), st.integers(-1, 2), st.integers(0, 2))) for _ in shape]
    assume(all((n - 1) * (between + 1) + 1 + a + b >= 0 for n, (a, b, between) in zip(shape, edges, strict=True)))
    merged = [shape[d] for d in first]

    def fn(x):
        moved = lax.transpose(x, first)
        return lax.transpose(moved, second), lax.rev(x, axes), lax.pad(x, 0.5, edges), lax.reshape(x, merged, first)

    agree(fn, reals(*shape))
