"""Rewritten equations against XLA's own, in float64: what differs is then the formula and not the rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covey.models.classifiers import mnist_cnn, mnist_cnn_init
from covey.simulation import convolution
from covey.simulation.minimal_filtering import minimal_filter
from covey.simulation.rewriting import has_primitive, rewritten

FIRST, LAST = ("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NHWC")
CONVOLUTION = "conv_general_dilated"
POOLING = ("reduce_window_max", "select_and_scatter_add")


@pytest.fixture(autouse=True)
def _small_shapes_too(monkeypatch):
    """Rewrite what is too small to gain by it: it has to be right all the same."""
    monkeypatch.setattr(convolution, "_MIN_FILTER_CHANNELS", 8)
    monkeypatch.setattr(convolution, "_MAX_COLUMN_INPUTS", 4)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def amplification(taps):
    """By how much the largest F(4, taps) on both axes can make a rounding error larger than its factors' product."""
    f = minimal_filter(4, taps)
    a, g, b = (np.abs(m) for m in (f.outputs, f.taps, f.inputs))
    return float((a.T @ (g.sum(1) * b.sum(1))).max()) ** 2


def remaining(function, args, *names):
    return has_primitive(jax.make_jaxpr(function)(*args).jaxpr, *names)


def case(size, window, channels, padding="SAME", batch=3, numbers=FIRST, dtype=np.float64, only_kernel=False, **more):
    """Return a function of image, kernel and errors to outputs and gradients, and arguments for it."""
    rng = np.random.default_rng(7)
    c, k = channels
    x = rng.uniform(-1, 1, (batch, c, *size)).astype(dtype)
    w = rng.uniform(-1, 1, (k, c // more.get("feature_group_count", 1), *window)).astype(dtype)
    if numbers == LAST:
        x, w = x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0)
    more = {"window_strides": (1, 1), **more}

    def convolve(x, w):
        return lax.conv_general_dilated(x, w, padding=padding, dimension_numbers=numbers, **more)

    def gradients(x, w, errors):
        if only_kernel:
            y, back = jax.vjp(lambda w: convolve(x, w), w)
        else:
            y, back = jax.vjp(convolve, x, w)
        return y, *back(errors)

    errors = rng.uniform(-1, 1, jax.eval_shape(convolve, x, w).shape).astype(dtype)
    return gradients, (x, w, errors)


REWRITTEN = {
    "the paper's second": case((14, 14), (5, 5), (32, 64)),
    "outputs fewer": case((14, 14), (5, 5), (24, 8)),
    "as many": case((7, 7), (3, 3), (16, 16)),
    "channels last": case((8, 8), (3, 3), (8, 16), numbers=LAST),
    "odd sizes": case((9, 13), (5, 3), (8, 12)),
    "windows of even length": case((9, 12), (4, 2), (8, 12)),
    "batch of one": case((11, 6), (3, 3), (12, 8), batch=1),
    "no padding": case((12, 11), (5, 5), (8, 16), "VALID"),
    "no padding, outputs fewer": case((12, 11), (3, 5), (16, 8), "VALID"),
    "an image smaller than the window": case((4, 4), (5, 5), (8, 16), batch=8),
    "padding on one side": case((10, 10), (3, 3), (8, 16), ((2, 0), (0, 1))),
}
"""All three equations by minimal filters."""

FEW = {
    "the paper's first": case((28, 28), (5, 5), (1, 32), only_kernel=True),
    "colours": case((9, 8), (5, 3), (3, 6), only_kernel=True),
    "colours last": case((9, 8), (3, 3), (3, 16), "VALID", numbers=LAST, batch=1, only_kernel=True),
}
"""Few input channels: the gradient of the image, which no first layer needs, is left to XLA."""

KEPT = {
    "strides": case((12, 12), (3, 3), (8, 16), window_strides=(2, 2)),
    "spread kernels": case((12, 12), (3, 3), (8, 16), rhs_dilation=(2, 2)),
    "groups": case((12, 12), (3, 3), (16, 16), feature_group_count=2),
    "long windows": case((16, 16), (7, 7), (8, 8)),
    "wide padding": case((8, 8), (3, 3), (8, 8), ((3, 3), (3, 3))),
    "a precision of one's own": case((8, 8), (3, 3), (8, 8), precision=lax.Precision.HIGHEST),
    "half precision": case((8, 8), (3, 3), (8, 8), dtype=np.float16),
}


def largest_difference(got, expected):
    assert [v.shape for v in got] == [v.shape for v in expected]
    return max(float(jnp.abs(a - b).max()) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("name", REWRITTEN)
def test_filtered_convolutions_and_both_gradients_are_right(name, float64):
    function, args = REWRITTEN[name]
    assert not remaining(rewritten(function), args, CONVOLUTION)
    terms = 64 * 3 * 14 * 14  # products of numbers below 1 in a sum, at most
    bound = amplification(5) * terms * float(np.finfo(np.float64).eps)
    assert largest_difference(jax.jit(rewritten(function))(*args), function(*args)) < bound < 1e-6


@pytest.mark.parametrize("name", FEW)
def test_windows_as_columns_are_right(name, float64):
    function, args = FEW[name]
    assert not remaining(rewritten(function), args, CONVOLUTION)
    bound = 3 * 28 * 28 * float(np.finfo(np.float64).eps)
    assert largest_difference(jax.jit(rewritten(function))(*args), function(*args)) < bound


@pytest.mark.parametrize("name", KEPT)
def test_unusual_convolutions_are_left_alone(name, float64):
    function, args = KEPT[name]
    before, after = (str(jax.make_jaxpr(f)(*args)).count(f"{CONVOLUTION}[") for f in (function, rewritten(function)))
    assert before == after == 3
    assert largest_difference(jax.jit(rewritten(function))(*args), jax.jit(function)(*args)) == 0


def test_float32_loses_few_digits_to_the_filters():
    function, args = case((14, 14), (5, 5), (32, 64), dtype=np.float32)
    with jax.enable_x64(True):
        exact = [np.asarray(v) for v in function(*(a.astype(np.float64) for a in args))]
    for got, expected in zip(jax.jit(rewritten(function))(*args), exact, strict=True):
        assert got.dtype == np.float32
        # Rounding errors are independent, so their root mean square is amplified by squares, not by absolute values.
        f = minimal_filter(4, 5)
        a, g, b = (np.square(m) for m in (f.outputs, f.taps, f.inputs))
        growth = float((a.T @ (g.sum(1) * b.sum(1))).max()) / 5
        assert np.sqrt(np.mean((got - expected) ** 2)) < growth * np.finfo(np.float32).eps * np.sqrt(
            np.mean(expected**2)
        )


def pooled(window, axes=(2, 3), strides=None, padding="VALID"):
    sizes, steps = [1] * 4, [1] * 4
    for axis, size, step in zip(axes, window, strides or window, strict=True):
        sizes[axis], steps[axis] = size, step

    def function(x, errors):
        y, back = jax.vjp(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, sizes, steps, padding), x)
        return y, *back(errors)

    return function


@pytest.mark.parametrize(
    ("window", "axes", "shape"),
    [
        ((2, 2), (2, 3), (3, 5, 8, 6)),
        ((2, 2), (2, 3), (1, 1, 7, 9)),
        ((3, 2), (1, 2), (2, 9, 5, 4)),
        ((3, 3), (0, 2), (7, 2, 6, 3)),
    ],
)
def test_maxima_and_their_gradients_are_the_same_bits(window, axes, shape):
    rng = np.random.default_rng(3)
    x = rng.integers(-2, 3, shape).astype(np.float32)  # ties in most windows
    out = list(shape)
    for axis, size in zip(axes, window, strict=True):
        out[axis] //= size
    args = x, rng.standard_normal(out).astype(np.float32)
    function = pooled(window, axes)
    assert not remaining(rewritten(function), args, *POOLING)
    for a, b in zip(jax.jit(rewritten(function))(*args), jax.jit(function)(*args), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    ("window", "strides", "padding", "out"),
    [((3, 3), (2, 2), "VALID", (3, 3)), ((2, 2), (2, 2), ((0, 0), (0, 0), (1, 0), (0, 1)), (4, 4))],
)
def test_windows_that_overlap_or_are_padded_are_left_alone(window, strides, padding, out):
    rng = np.random.default_rng(3)
    args = rng.standard_normal((2, 3, 7, 7)).astype(np.float32), rng.standard_normal((2, 3, *out)).astype(np.float32)
    function = pooled(window, strides=strides, padding=padding)
    assert all(remaining(rewritten(function), args, name) for name in POOLING)
    assert largest_difference(jax.jit(rewritten(function))(*args), jax.jit(function)(*args)) == 0


@pytest.mark.parametrize(("axes", "rewrites"), [((0, 2, 3), True), ((0, 1, 2, 3), True), ((0, 2), False)])
def test_the_sum_of_a_poolings_gradient_is_that_of_the_errors(axes, rewrites):
    rng = np.random.default_rng(3)
    # Whole numbers: sums are exact in any order.
    x, errors = (rng.integers(-2, 3, s).astype(np.float32) for s in ((2, 3, 7, 6), (2, 3, 3, 3)))

    def function(x, errors):
        return jnp.sum(pooled((2, 2))(x, errors)[1], axes)

    summed = jax.make_jaxpr(rewritten(function))(x, errors).jaxpr.eqns[-1].invars[0].aval.shape
    assert summed == (errors.shape if rewrites else x.shape)
    assert jnp.array_equal(jax.jit(rewritten(function))(x, errors), jax.jit(function)(x, errors))


def loss(p, x):
    return jnp.sum(mnist_cnn(p, x) ** 2)


def test_equations_within_others_are_found():
    """In calls, loops, branches, and behind derivatives of one's own."""

    @jax.custom_vjp
    def own(p, x):
        return loss(p, x)

    own.defvjp(lambda p, x: (loss(p, x), (p, x)), lambda saved, e: (jax.grad(loss)(*saved), jnp.zeros_like(saved[1])))

    def looped(p, x):
        def body(i, p):
            return jax.tree.map(lambda a, b: a - 1e-4 * b, p, jax.grad(loss)(p, x))

        return jax.lax.fori_loop(0, jnp.int32(2), body, p)

    forms = {
        "jit": jax.jit(jax.grad(loss)),
        "fori_loop": looped,
        "scan": lambda p, x: lax.scan(lambda c, _: (c + loss(p, x), None), 0.0, None, length=2)[0],
        "cond": lambda p, x: lax.cond(x[0, 0] > 0, lambda: jax.grad(loss)(p, x), lambda: p),
        "custom_vjp": own,
        "gradient of custom_vjp": jax.grad(own),
        "vmap": lambda p, x: jax.vmap(lambda x: mnist_cnn(p, x[None]))(x),
    }
    p = mnist_cnn_init(jax.random.key(0))
    x = np.random.default_rng(0).uniform(0, 1, (2, 784)).astype(np.float32)
    for name, function in forms.items():
        assert remaining(function, (p, x), CONVOLUTION, *POOLING), name
        assert not remaining(rewritten(function), (p, x), CONVOLUTION, *POOLING), name
