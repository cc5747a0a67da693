"""Every primitive that has a rule, by itself, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import primitives

from covey.plans.lowering import registry

from .agreement import agree, reals, whole

X = reals(3, 4)
POSITIVE = np.abs(X) + np.float32(0.1)
UNIT = np.tanh(X)
TINY = (X * 1e-6).astype(np.float32)
HUGE = (X * 20).astype(np.float32)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, -0.49999997, 7.3, 1e9, 0.0, -3.0], np.float32)
ODD = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan, 2.5, -2.5, 1e-30, 1e30, 3.0], np.float32)
N, M = whole(3, 4), whole(3, 4, seed=1)
U = np.random.Generator(np.random.Philox(key=2)).integers(0, 2**32, (3, 4), np.uint32)
BYTES = whole(3, 4, low=0, high=256).astype(np.uint8)
B, C = N > 0, M > 0
KEY = np.array([3, 5], np.uint32)
IMAGE = reals(2, 3, 7, 6)
KERNEL = reals(4, 3, 3, 2, seed=1)
DISTANCES = np.array([0, 1, 31, 32, 33, 5, 7, 16, 2, 3, 4, 100], np.int32).reshape(3, 4)


def key(words):
    return jax.random.wrap_key_data(words)


def window(reducer, start):
    return lambda x: lax.reduce_window(x, start, reducer, (1, 1, 3, 2), (1, 1, 2, 2), "SAME")


def at(method, **options):
    return lambda x, i, v: getattr(jnp.asarray(x).at[i], method)(v, **options)


def loop(reverse=False):
    return lambda x: lax.scan(lambda c, r: (c * 0.5 + r, jnp.sin(c)), jnp.ones(4), x, reverse=reverse)


def looped(x):
    return lax.scan(lambda c, r: (jnp.tanh(c + r), c), x[0], x)[1]


def closed_call(x):
    bind = primitives.closed_call_p
    return bind.bind(x, **bind.get_bind_params({"call_jaxpr": jax.make_jaxpr(jnp.sin)(x)}))


@jax.custom_jvp
def sine(x):
    return jnp.sin(x)


@jax.custom_vjp
def cosine(x):
    return jnp.cos(x)


sine.defjvp(lambda x, t: (jnp.sin(*x), t[0] * jnp.cos(*x)))
cosine.defvjp(lambda x: (jnp.cos(x), x), lambda x, g: (-g * jnp.sin(x),))

UNARY = {
    "abs": (lax.abs, X, ODD, N),
    "acos": (lax.acos, UNIT),
    "acosh": (lax.acosh, POSITIVE + 1),
    "asin": (lax.asin, UNIT),
    "asinh": (lax.asinh, X),
    "atan": (lax.atan, X, ODD),
    "atanh": (lax.atanh, UNIT),
    "cbrt": (lax.cbrt, X),
    "ceil": (lax.ceil, HALVES, ODD),
    "convert_element_type": (lambda x: x.astype(jnp.int32), HALVES),
    "copy": (jnp.copy, X),
    "cos": (lax.cos, X),
    "cosh": (lax.cosh, X),
    "device_put": (jax.device_put, X),
    "erf": (lax.erf, X, ODD),
    "erf_inv": (lax.erf_inv, UNIT, np.array([-1, 1, 0, 0.9999], np.float32)),
    "erfc": (lax.erfc, X),
    "exp": (lax.exp, X, HUGE, ODD),
    "exp2": (lax.exp2, X, HUGE),
    "expm1": (lax.expm1, X, TINY, HUGE),
    "floor": (lax.floor, HALVES, ODD),
    "integer_pow": (lambda x: (lax.integer_pow(x, 5), lax.integer_pow(x, -3), lax.integer_pow(x, 0)), X),
    "is_finite": (lax.is_finite, ODD),
    "log": (lax.log, POSITIVE, ODD),
    "platform_index": (lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos), X),
    "log1p": (lax.log1p, POSITIVE, TINY, UNIT, ODD),
    "logistic": (lax.logistic, X, HUGE),
    "name": (lambda x: checkpoint_name(x, "a name"), X),
    "neg": (lax.neg, X, N, U),
    "nextafter": (lambda x: x + lax.nextafter(np.float32(1), np.float32(np.inf)), X),
    "not": (lax.bitwise_not, B, N, U),
    "optimization_barrier": (lax.optimization_barrier, X),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 23), X),
    "round": (lambda x: (lax.round(x, lax.RoundingMethod(0)), lax.round(x, lax.RoundingMethod(1))), HALVES, ODD[:6]),
    "rsqrt": (lax.rsqrt, POSITIVE),
    "sharding_constraint": (
        lambda x: lax.with_sharding_constraint(x, jax.sharding.SingleDeviceSharding(jax.devices()[0])),
        X,
    ),
    "sign": (lax.sign, X, ODD[:6], N),
    "sin": (lax.sin, X),
    "sinh": (lax.sinh, X),
    "sqrt": (lax.sqrt, POSITIVE, ODD),
    "square": (lax.square, X, N),
    "stop_gradient": (lax.stop_gradient, X),
    "tan": (lax.tan, UNIT),
    "tanh": (lax.tanh, X, HUGE, TINY),
}
"""Of one argument, which each array in turn is; all arrays of one dtype share a graph's shape only if equal."""

ROWS = {
    "add": [(lax.add, X, UNIT), (lax.add, U, U[::-1]), (lax.add, BYTES, BYTES)],
    "add_any": [(jax.grad(lambda x: jnp.sum(x * jnp.sin(x))), X)],
    "and": [(lax.bitwise_and, B, C), (lax.bitwise_and, N, M), (lax.bitwise_and, U, U[::-1])],
    "argmax": [(lambda x: lax.argmax(x, 1, jnp.int32), a) for a in (X, N % 2, U, B)],
    "argmin": [(lambda x: lax.argmin(x, 0, jnp.int32), a) for a in (X, N % 2, U, BYTES)],
    "atan2": [(lax.atan2, X, X[::-1]), (lax.atan2, np.float32([0, 0, 1, -1, -1]), np.float32([-1, 1, 0, 0, -1]))],
    "bitcast_convert_type": [
        (lambda x: lax.bitcast_convert_type(x, jnp.int32), U),
        (lambda k: jax.random.uniform(key(k), (3,)), KEY),
    ],
    "broadcast_in_dim": [(lambda x: lax.broadcast_in_dim(x, (2, 3, 5, 4), (1, 3)), X)],
    "clamp": [(lax.clamp, np.float32(-0.5), X, np.float32(0.7)), (lax.clamp, np.int32(-2), N, np.int32(3))],
    "closed_call": [
        (closed_call, X),
    ],
    "concatenate": [(lambda a, b: lax.concatenate([a, b, a[:0]], 0), X, UNIT)],
    "cond": [
        (lambda p, x: lax.cond(p > 0, jnp.sin, jnp.cos, x), np.int32(1), X),
        (lambda p, x: lax.cond(p > 0, jnp.sin, jnp.cos, x), np.int32(0), X),
        *((lambda i, x: lax.switch(i, [jnp.sin, jnp.cos, jnp.tanh], x), np.int32(i), X) for i in (-1, 0, 1, 2, 9)),
    ],
    "conv_general_dilated": [(lambda x, k: lax.conv(x, k, (2, 1), "SAME"), IMAGE, KERNEL)],
    "cumlogsumexp": [(lambda x: (lax.cumlogsumexp(x, 1), lax.cumlogsumexp(x, 0, reverse=True)), X)],
    "cummax": [(lambda x: (lax.cummax(x, 1), lax.cummax(x, 0, reverse=True)), a) for a in (X, N)],
    "cummin": [(lambda x: (lax.cummin(x, 1), lax.cummin(x, 0, reverse=True)), a) for a in (X, U)],
    "cumprod": [(lambda x: (lax.cumprod(x, 1), lax.cumprod(x, 0, reverse=True)), a) for a in (X, N)],
    "cumsum": [(lambda x: (lax.cumsum(x, 1), lax.cumsum(x, 0, reverse=True)), a) for a in (X, N, U)],
    "custom_jvp_call": [(sine, X)],
    "custom_vjp_call": [(cosine, X)],
    "div": [
        (lax.div, X, POSITIVE),
        (lax.div, N, np.abs(M) + 1),
        (lax.div, np.int32([-(2**31), -7]), np.int32([-1, 2])),
        (lambda x: lax.div(x, np.int32(-1)), np.int32([-(2**31), 7])),
        (lambda x: x / 3, X),
        (lambda x: x / 0.25, X),
        (lax.div, U, BYTES.astype(np.uint32) + 1),
    ],
    "dot_general": [(jnp.matmul, X, X.T), (jnp.matmul, N, M.T), (jnp.matmul, BYTES, BYTES.T),
        (lambda a: jnp.einsum("nchw,ncwk->hk", a, a), IMAGE[..., :6, :])],
    "dynamic_slice": [(lambda x, i: lax.dynamic_slice(x, (i, 1), (2, 2)), X, np.int32(i)) for i in (0, 1, 9)],
    "dynamic_update_slice": [
        (lambda x, v, i: lax.dynamic_update_slice(x, v, (i, 1)), X, UNIT[:2, :2], np.int32(i)) for i in (0, 1, 9)
    ],
    "empty2": [(jax.grad(lambda x: jnp.sum(lax.cond(x[0, 0] > 0, looped, lambda v: v * 2, x))), a) for a in (X, -X)],
    "eq": [(lax.eq, N, M), (lax.eq, B, C), (lax.eq, U, U[::-1]), (lax.eq, ODD, ODD)],
    "gather": [
        (lambda x, i, mode=mode: x.at[i].get(mode=mode), array, np.array([[0, 2], [5, -7]], np.int32))
        for mode in ("fill", "clip") for array in (X, N, U, B)
    ],
    "ge": [(lax.ge, N, M), (lax.ge, B, C), (lax.ge, ODD, ODD[::-1])],
    "gt": [(lax.gt, U, U[::-1]), (lax.gt, X, UNIT[::-1]), (lambda x: (jax.nn.relu(x), x > 0), X)],
    "iota": [(lambda x: x + lax.broadcasted_iota(jnp.float32, (3, 4), 1), X),
             (lambda x: x + jnp.arange(2000), np.int32(1))],
    "iota_2x32_shape": [(lambda k: jax.random.bits(key(k), (3, 5)), KEY)],
    "jit": [(lambda x: jax.jit(jnp.sin)(x), X)],
    "le": [(lax.le, N, M), (lax.le, ODD, ODD[::-1])],
    "lt": [(lax.lt, N, M), (lax.lt, B, C), (lax.lt, BYTES, BYTES[::-1])],
    "max": [(lax.max, X, UNIT[::-1]), (lax.max, N, M), (lax.max, B, C), (lax.max, U, U[::-1]),
            (lambda x: lax.max(x, 0.0), X)],
    "min": [(lax.min, X, UNIT[::-1]), (lax.min, N, M), (lax.min, B, C), (lax.min, BYTES, BYTES[::-1])],
    "le_to": [(lambda x, y: jnp.searchsorted(jnp.sort(x), y, side="left"), ODD[:6], ODD),
              (lambda x, y: jnp.searchsorted(x, y, side="left"), np.sort(N.ravel()), M)],
    "lt_to": [(lambda x, y: jnp.searchsorted(x, y, side="right"), np.sort(ODD[1:]), ODD),
              (lambda x, y: jnp.searchsorted(x, y, side="right"), np.sort(N.ravel()), M)],
    "mul": [(lax.mul, X, UNIT), (lax.mul, N, M), (lax.mul, U, U[::-1])],
    "ne": [(lax.ne, N, M), (lax.ne, B, C), (lax.ne, ODD, ODD)],
    "or": [(lax.bitwise_or, B, C), (lax.bitwise_or, N, M), (lax.bitwise_or, U, U[::-1])],
    "pad": [(lambda x: lax.pad(x, np.array(1, x.dtype), ((2, -1, 1), (-1, 3, 2))), a) for a in (X, N, U, BYTES, B)],
    "pow": [(lax.pow, POSITIVE, X), (lax.pow, X, N), (lambda x: lax.pow(x, 0.5), POSITIVE)],
    "random_bits": [(lambda k: jax.random.bits(key(k), (7,)), KEY)],
    "random_clone": [(lambda k: jax.random.bits(jax.random.clone(key(k))), KEY)],
    "random_fold_in": [(lambda k, i: jax.random.key_data(jax.random.fold_in(key(k), i)), KEY, np.uint32(7))],
    "random_seed": [(lambda i: jax.random.key_data(jax.random.key(i)), i) for i in (np.int32(-3), np.uint32(11))],
    "random_split": [(lambda k: jax.random.key_data(jax.random.split(key(k), (2, 3))), KEY)],
    "random_unwrap": [(lambda k: jax.random.key_data(key(k)), KEY)],
    "random_wrap": [(lambda k: jax.random.key_data(key(k)), KEY)],
    "reduce_and": [(lambda x: jnp.all(x, 1), B)],
    "reduce_max": [(lambda x: jnp.max(x, 0), a) for a in (X, N, U)],
    "reduce_min": [(lambda x: jnp.min(x, (0, 1)), a) for a in (X, N, BYTES)],
    "reduce_or": [(lambda x: jnp.any(x, (0, 1)), B)],
    "reduce_prod": [(lambda x: jnp.prod(x, (0, 1)), a) for a in (X, N, U, U[:, :3], U[:, :0])],
    "reduce_sum": [
        *((lambda x: jnp.sum(x, 1), a) for a in (X, N, U, N * 1_000_000_000)),
        (lambda x: jnp.sum(jnp.broadcast_to(x[:, None], (3, 5, 4)), (0, 1)), X),
    ],
    "reduce_window_max": [(window(lax.max, -np.inf), IMAGE)],
    "reduce_window_min": [(window(lax.min, np.inf), IMAGE)],
    "reduce_window_sum": [(window(lax.add, 0.0), IMAGE)],
    "rem": [(lax.rem, X, UNIT), (lax.rem, N, np.abs(M) + 1), (lax.rem, U, BYTES.astype(np.uint32) + 1)],
    "remat2": [(jax.grad(jax.checkpoint(lambda x: jnp.sum(jnp.sin(jnp.sin(x))))), X)],
    "reshape": [(lambda x: lax.reshape(x, (2, 6)), X), (lambda x: lax.reshape(x, (6, 2), (1, 0)), X),
                (lambda x: jnp.sum(lax.reshape(x[:0], (4, 0, 2)), 1), X),
                (lambda x: lax.reshape(x[:1, :1], (1, 1, 1)), X)],
    "rev": [(lambda x: (lax.rev(x, (0,)), lax.rev(x, (0, 1)), lax.rev(x[:1], (0,))), a) for a in (X, B)],
    "scan": [
        (loop(), X),
        (loop(reverse=True), X),
        (lambda x: loop()(x[:0]), X),
        (lambda x: lax.fori_loop(0, 3, lambda i, c: c * 0.5 + i, x), X),
    ],
    "scatter": [(at("set"), a, np.array([2, 0, 7], np.int32), a[::-1]) for a in (X, N, U, B)],
    "scatter-add": [
        (at("add"), X, np.array([1, 1, -9], np.int32), UNIT),
        (at("add", mode="clip"), X, np.array([1, 1, 9], np.int32), UNIT),
        (at("add"), N, np.array([1, 1, 9], np.int32), M),
    ],
    "scatter-max": [(at("max"), X, np.array([1, 1, 9], np.int32), UNIT[::-1])],
    "scatter-min": [(at("min"), X, np.array([1, 1, 9], np.int32), UNIT[::-1])],
    "scatter-mul": [(at("mul"), X, np.array([1, 1, 9], np.int32), UNIT)],
    "scatter-sub": [(at("subtract"), X, np.array([1, 1, 9], np.int32), UNIT)],
    "select_and_gather_add": [(lambda x, t: jax.jvp(window(lax.max, -np.inf), (x,), (t,)), IMAGE, IMAGE[::-1])],
    "select_and_scatter_add": [(jax.grad(lambda x: jnp.sum(jnp.sin(window(lax.max, -np.inf)(x)))), IMAGE)],
    "select_n": [
        (lax.select_n, B, X, UNIT),
        (lax.select_n, B, B, C),
        (lambda i, *xs: lax.select_n(i, *xs), N % 3, X, UNIT, POSITIVE),
    ],
    "shift_left": [(lax.shift_left, N, DISTANCES), (lambda x: x << 3, U)],
    "shift_right_arithmetic": [(lax.shift_right_arithmetic, N, DISTANCES), (lambda x: x >> 3, N)],
    "shift_right_logical": [(lax.shift_right_logical, N, DISTANCES), (lambda x: x >> 40, U)],
    "slice": [(lambda x: lax.slice(x, (0, 1), (3, 4), (2, 2)), X)],
    "sort": [
        *((lambda x, d=d: lax.sort(x, dimension=d), a) for d in (0, 1) for a in (X, N, U, BYTES)),
        (lambda a, b, c: lax.sort((a, b, c), dimension=1, num_keys=2), N % 2, M % 2, X),
        (lambda a, b: lax.sort((a, b), dimension=0, num_keys=1), whole(50, high=2), np.arange(50, dtype=np.int32)),
    ],
    "split": [(lambda x: lax.split(x, (1, 3), 1), X)],
    "squeeze": [(lambda x: lax.squeeze(x[:, None], (1,)), X)],
    "stack": [(lambda a, b: jnp.stack([a, b], 1), X, UNIT)],
    "sub": [(lax.sub, X, UNIT), (lax.sub, U, U[::-1])],
    "threefry2x32": [(lambda k: jax.random.bits(key(k), (3,)), KEY)],
    "tile": [(lambda x: jnp.tile(x, (2, 3)), X)],
    "top_k": [(lambda x: lax.top_k(x, 3), a) for a in (X, N % 2, U)] + [(lambda x: lax.top_k(x, 2, axis=0), X)],
    "transpose": [(lambda x: lax.transpose(x, (2, 0, 3, 1)), IMAGE)],
    "unstack": [(lambda x: jnp.unstack(x, axis=1), X), (lambda x: jnp.unstack(x[:1]), X)],
    "xor": [(lax.bitwise_xor, B, C), (lax.bitwise_xor, N, M)],
}  # fmt: skip
ROWS |= {name: [(fn, array) for array in arrays] for name, (fn, *arrays) in UNARY.items()}

OTHER_VERSIONS = {
    "checkpoint": "remat2",
    "copy_p": "copy",
    "custom_vjp_call_jaxpr": "custom_vjp_call",
    "pjit": "jit",
    "scatter_add": "scatter-add",
    "scatter_max": "scatter-max",
    "scatter_min": "scatter-min",
    "scatter_mul": "scatter-mul",
    "scatter_sub": "scatter-sub",
}
"""What other versions of JAX call a primitive: such a name has no row, but the rule of one that has."""


@pytest.fixture
def lowered(monkeypatch) -> set[str]:
    """Collect the names of the primitives whose rules have run."""
    seen: set[str] = set()
    for name, (rule, narrow) in list(registry._RULES.items()):

        def spy(*args, _name=name, _rule=rule):
            seen.add(_name)
            return _rule(*args)

        monkeypatch.setitem(registry._RULES, name, (spy, narrow))
    return seen


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_primitive_agrees_with_jax(name, lowered):
    for fn, *arrays in ROWS[name]:
        lowered.clear()
        agree(fn, *arrays)
        assert name in lowered


def test_every_rule_has_a_row():
    assert set(registry._RULES) == set(ROWS) | set(OTHER_VERSIONS)


def test_a_name_of_another_version_has_the_rule_of_the_present_one():
    for old, new in OTHER_VERSIONS.items():
        assert registry._RULES[old][0] is registry._RULES[new][0]
