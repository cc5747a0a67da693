"""Element-wise primitives. Inputs may be lazily broadcast; the result then is as well."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.graph import Graph, Value
from covey.plans.lowering.registry import lowers, out_dtype, tensor_shape, unsupported

_UNARY = {
    "acos": "Acos",
    "acosh": "Acosh",
    "asin": "Asin",
    "asinh": "Asinh",
    "atan": "Atan",
    "atanh": "Atanh",
    "ceil": "Ceil",
    "cos": "Cos",
    "cosh": "Cosh",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "log": "Log",
    "logistic": "Sigmoid",
    "neg": "Neg",
    "sign": "Sign",
    "sin": "Sin",
    "sinh": "Sinh",
    "sqrt": "Sqrt",
    "tan": "Tan",
    "tanh": "Tanh",
}
_COMPARE = {"eq": "Equal", "gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual"}

_LACKS_ARITHMETIC = frozenset({"uint32", "uint8", "int8"})
"""Integer types for which older onnxruntime has no Add, Mul or Less: computed in int64 and cut back, which is exact."""


def arithmetic(graph: Graph, op: str, *inputs: Value, **attributes: Any) -> Value:
    """Apply an arithmetic operator; integers wrap as JAX's do."""
    dtype = inputs[0].dtype
    if dtype.name not in _LACKS_ARITHMETIC:
        return graph.broadcast(op, inputs, dtype, **attributes)
    wide = graph.broadcast(op, [graph.cast(v, np.int64) for v in inputs], np.int64, **attributes)
    return graph.cast(wide, dtype)


def compare(graph: Graph, op: str, a: Value, b: Value) -> Value:
    """Compare element by element."""
    if a.dtype.name in _LACKS_ARITHMETIC:
        a, b = graph.cast(a, np.int64), graph.cast(b, np.int64)
    elif a.dtype == np.bool_ and op != "Equal":
        a, b = graph.cast(a, np.int32), graph.cast(b, np.int32)
    return graph.broadcast(op, [a, b], np.bool_)


def like(graph: Graph, number: float, value: Value) -> Value:
    """Return a scalar constant of the dtype of ``value``."""
    return graph.const(np.array(number, value.dtype))


def _unary(op: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
        return arithmetic(graph, op, x)

    return rule


def _compare(op: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
        return compare(graph, op, a, b)

    return rule


for _name, _op in _UNARY.items():
    lowers(_name, narrow=True)(_unary(_op))
for _name, _op in _COMPARE.items():
    if _name != "gt":
        lowers(_name, narrow=True)(_compare(_op))


@lowers("gt", narrow=True)
def greater(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Compare; a > 0 reads max(a, 0) instead where that is at hand: onnxruntime can then fuse a layer with its ReLU."""
    if b.scalar() == 0 and a.dtype == np.float32 and a.known is None:
        a = graph.find("Relu", [a]) or a
    return compare(graph, "Greater", a, b)


@lowers("ne", narrow=True)
def not_equal(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Compare for inequality."""
    return graph.broadcast("Not", [compare(graph, "Equal", a, b)], np.bool_)


def _before(graph: Graph, a: Value, b: Value) -> Value:
    less = compare(graph, "Less", a, b)
    if not np.issubdtype(a.dtype, np.floating):
        return less
    numbers, others = (compare(graph, "Equal", a, a), graph.broadcast("Not", [compare(graph, "Equal", b, b)], np.bool_))
    return graph.broadcast("Or", [less, graph.broadcast("And", [numbers, others], np.bool_)], np.bool_)


@lowers("lt_to", narrow=True)
def before(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Compare as a sort does, NaN last; both zeros are one, as jnp.searchsorted makes them before it asks."""
    return _before(graph, a, b)


@lowers("le_to", narrow=True)
def not_after(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Compare as a sort does, NaN last."""
    return graph.broadcast("Not", [_before(graph, b, a)], np.bool_)


@lowers("add", "add_any", narrow=True)
def add(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Add; bool is not a number here."""
    return arithmetic(graph, "Add", a, b)


@lowers("sub", narrow=True)
def subtract(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Subtract; the one in [1, 2) that a random fraction carries is left out in the first place."""
    return arithmetic(graph, "Sub", a, b)


@lowers("mul", narrow=True)
def multiply(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Multiply; by a known 1 (the cotangent of a sum) costs nothing."""
    if a.scalar() == 1 and len(a.shape) <= len(b.shape):
        return b
    if b.scalar() == 1 and len(b.shape) <= len(a.shape):
        return a
    return arithmetic(graph, "Mul", a, b)


@lowers("div", narrow=True)
def divide(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Divide; by a known power of two it is the exact and faster product, and by another number within one ulp."""
    number = b.scalar()
    if number and np.issubdtype(a.dtype, np.floating) and math.isfinite(number) and np.isfinite(np.float32(1 / number)):
        return multiply(graph, eqn, a, graph.const((np.ones((), a.dtype) / b.known).astype(a.dtype)))
    if a.dtype == np.int32 and number in (None, -1):  # -2^31 / -1 overflows, which stops the whole process
        return graph.cast(arithmetic(graph, "Div", graph.cast(a, np.int64), graph.cast(b, np.int64)), np.int32)
    return arithmetic(graph, "Div", a, b)


@lowers("rem", narrow=True)
def remainder(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Return the remainder with the dividend's sign, as C does."""
    return arithmetic(graph, "Mod", a, b, fmod=1)


@lowers("max", narrow=True)
def maximum(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Return the larger; against zero it is ReLU."""
    if a.dtype == np.bool_:
        return graph.broadcast("Or", [a, b], np.bool_)
    for x, other in ((a, b), (b, a)):
        if other.scalar() == 0 and x.dtype == np.float32 and len(other.shape) <= len(x.shape) and x.known is None:
            return graph.op("Relu", [x], x.shape, x.dtype)
    return arithmetic(graph, "Max", a, b)


@lowers("min", narrow=True)
def minimum(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Return the smaller."""
    if a.dtype == np.bool_:
        return graph.broadcast("And", [a, b], np.bool_)
    return arithmetic(graph, "Min", a, b)


@lowers("clamp", narrow=True)
def clamp(graph: Graph, eqn: JaxprEqn, low: Value, x: Value, high: Value) -> Value:
    """Bound from below, then from above."""
    return arithmetic(graph, "Min", arithmetic(graph, "Max", x, low), high)


@lowers("abs", narrow=True)
def absolute(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Return the magnitude."""
    return arithmetic(graph, "Abs", x)


@lowers("square", narrow=True)
def square(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Multiply by itself."""
    return arithmetic(graph, "Mul", x, x)


@lowers("integer_pow", narrow=True)
def integer_power(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Multiply by squaring; faster and closer than Pow."""
    exponent = int(eqn.params["y"])
    result: Value | None = None
    factor = x
    left = abs(exponent)
    while left:
        if left & 1:
            result = factor if result is None else arithmetic(graph, "Mul", result, factor)
        left >>= 1
        if left:
            factor = arithmetic(graph, "Mul", factor, factor)
    if result is None:
        return like(graph, 1, x)
    return result if exponent > 0 else arithmetic(graph, "Div", like(graph, 1, x), result)


@lowers("pow", narrow=True)
def power(graph: Graph, eqn: JaxprEqn, x: Value, y: Value) -> Value:
    """Raise to a power."""
    return graph.broadcast("Pow", [x, graph.cast(y, x.dtype)], x.dtype)


@lowers("exp2", narrow=True)
def exp2(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Raise 2 to a power; Exp(x ln 2) would lose digits for large x."""
    return graph.broadcast("Pow", [like(graph, 2, x), x], x.dtype)


@lowers("rsqrt", narrow=True)
def rsqrt(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Return 1 / sqrt(x)."""
    return graph.op("Reciprocal", [graph.op("Sqrt", [x], x.shape, x.dtype)], x.shape, x.dtype)


@lowers("cbrt", narrow=True)
def cube_root(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Return the real cube root, also of negative numbers."""
    size = graph.broadcast("Pow", [arithmetic(graph, "Abs", x), like(graph, 1 / 3, x)], x.dtype)
    return arithmetic(graph, "Mul", arithmetic(graph, "Sign", x), size)


@lowers("expm1", narrow=True)
def expm1(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Return exp(x) - 1 as tanh(x/2) (exp(x) + 1): the plain form loses all digits near 0, this one none."""
    half = graph.op("Tanh", [arithmetic(graph, "Mul", x, like(graph, 0.5, x))], x.shape, x.dtype)
    plus = arithmetic(graph, "Add", graph.op("Exp", [x], x.shape, x.dtype), like(graph, 1, x))
    return arithmetic(graph, "Mul", half, plus)


@lowers("log1p", narrow=True)
def log1p(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Return log(1 + x) as log(u) + (x - (u - 1)) / u with u = fl(1 + x): the quotient is what rounding u lost.

    Without it log(1 + 1e-8) would be 0. For an infinite x the quotient is not a number, so it is left out there.
    """
    one = like(graph, 1, x)
    u = arithmetic(graph, "Add", x, one)
    lost = arithmetic(graph, "Sub", x, arithmetic(graph, "Sub", u, one))
    log = graph.op("Log", [u], x.shape, x.dtype)
    whole = arithmetic(graph, "Add", log, arithmetic(graph, "Div", lost, u))
    infinite = compare(graph, "Equal", x, like(graph, math.inf, x))
    minus_one = compare(graph, "Equal", u, like(graph, 0, x))  # 0 / 0: the logarithm alone is -inf, as it should be
    return graph.broadcast("Where", [graph.broadcast("Or", [infinite, minus_one], np.bool_), log, whole], x.dtype)


@lowers("erfc", narrow=True)
def erfc(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Return 1 - erf(x): within one float32 ulp of 1, absolutely; the far tail is 0."""
    return arithmetic(graph, "Sub", like(graph, 1, x), graph.op("Erf", [x], x.shape, x.dtype))


# Giles, "Approximating the erfinv function" (GPU Computing Gems 2, 2011), single precision: what XLA uses as well.
_ERF_INV_CENTRE = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
    0.246640727, 1.50140941,
)  # fmt: skip
_ERF_INV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
    1.00167406, 2.83297682,
)  # fmt: skip


@lowers("erf_inv", narrow=True)
def erf_inv(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Invert erf by Giles' polynomials in w = -log(1 - x²); jax.random.normal needs it."""
    w = arithmetic(graph, "Neg", log1p(graph, eqn, arithmetic(graph, "Neg", arithmetic(graph, "Mul", x, x))))
    central = compare(graph, "Less", w, like(graph, 5, x))
    near = arithmetic(graph, "Sub", w, like(graph, 2.5, x))
    far = arithmetic(graph, "Sub", graph.op("Sqrt", [w], w.shape, w.dtype), like(graph, 3, x))
    at = graph.broadcast("Where", [central, near, far], x.dtype)
    value: Value | None = None
    for inner, outer in zip(_ERF_INV_CENTRE, _ERF_INV_TAIL, strict=True):
        pick = graph.broadcast("Where", [central, like(graph, inner, x), like(graph, outer, x)], x.dtype)
        value = pick if value is None else arithmetic(graph, "Add", pick, arithmetic(graph, "Mul", value, at))
    assert value is not None
    edge = compare(graph, "Equal", arithmetic(graph, "Abs", x), like(graph, 1, x))
    infinite = arithmetic(graph, "Mul", x, like(graph, math.inf, x))
    return graph.broadcast("Where", [edge, infinite, arithmetic(graph, "Mul", value, x)], x.dtype)


@lowers("atan2", narrow=True)
def atan2(graph: Graph, eqn: JaxprEqn, y: Value, x: Value) -> Value:
    """Return the angle of (x, y) as 2 atan(y / (r + x)), or where x < 0 as ±π - the angle of (-x, y)."""
    zero = like(graph, 0, x)
    negative = compare(graph, "Less", x, zero)
    ratio = arithmetic(graph, "Div", y, arithmetic(graph, "Abs", x))
    origin = compare(graph, "Equal", y, zero)
    angle = graph.broadcast("Atan", [graph.broadcast("Where", [origin, zero, ratio], x.dtype)], x.dtype)
    half_turn = graph.broadcast("Where", [compare(graph, "Less", y, zero), like(graph, -math.pi, x),
                                          like(graph, math.pi, x)], x.dtype)  # fmt: skip
    return graph.broadcast("Where", [negative, arithmetic(graph, "Sub", half_turn, angle), angle], x.dtype)


@lowers("round", narrow=True)
def round_(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Round halves to even, or away from zero where JAX asks for that."""
    if int(eqn.params["rounding_method"]) == 1:
        return graph.op("Round", [x], x.shape, x.dtype)
    size = arithmetic(graph, "Abs", x)
    whole = graph.op("Floor", [size], x.shape, x.dtype)
    # Not floor(|x| + 1/2): for the float just below 1/2 that sum rounds to 1.
    half = compare(graph, "GreaterOrEqual", arithmetic(graph, "Sub", size, whole), like(graph, 0.5, x))
    return arithmetic(
        graph, "Mul", arithmetic(graph, "Sign", x), arithmetic(graph, "Add", whole, graph.cast(half, x.dtype))
    )


@lowers("nextafter", narrow=True)
def next_after(graph: Graph, eqn: JaxprEqn, x: Value, towards: Value) -> Value:
    """Return the next number; only of constants, which is what the bounds of random numbers are."""
    if x.known is None or towards.known is None:
        raise unsupported(eqn, "of computed values", "only constants have a next number")
    return graph.const(np.nextafter(x.known, towards.known).astype(x.dtype))


@lowers("is_finite", narrow=True)
def is_finite(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Say where neither infinite nor NaN: |x| < inf."""
    return compare(graph, "Less", arithmetic(graph, "Abs", x), like(graph, math.inf, x))


def select(graph: Graph, which: Value, if_true: Value, if_false: Value) -> Value:
    """Choose element by element; onnxruntime's Where has no bool, so those choose by logic."""
    if if_true is if_false:
        return if_true
    if if_true.dtype != np.bool_:
        return graph.broadcast("Where", [which, if_true, if_false], if_true.dtype)
    taken = graph.broadcast("And", [which, if_true], np.bool_)
    other = graph.broadcast("And", [graph.broadcast("Not", [which], np.bool_), if_false], np.bool_)
    return graph.broadcast("Or", [taken, other], np.bool_)


@lowers("select_n", narrow=True)
def select_n(graph: Graph, eqn: JaxprEqn, which: Value, *cases: Value) -> Value:
    """Choose by a bool (false is the first case) or by a number."""
    case: Any = eqn.invars[1].aval
    if which.shape and len(tensor_shape(case)) > len(case.shape):  # of keys, which have an axis of two words more
        which = graph.reshape(which, (*which.shape, 1))
    if which.dtype == np.bool_:
        return cases[0] if len(cases) == 1 else select(graph, which, cases[1], cases[0])
    result = cases[-1]
    for index in range(len(cases) - 2, -1, -1):
        result = select(graph, compare(graph, "LessOrEqual", which, like(graph, index, which)), cases[index], result)
    return result


@lowers("convert_element_type", narrow=True)
def convert(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Convert the dtype."""
    return graph.cast(x, out_dtype(eqn))


@lowers("reduce_precision", narrow=True)
def reduce_precision(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Do nothing for float32's own precision; others are not emulated."""
    if (eqn.params["exponent_bits"], eqn.params["mantissa_bits"]) != (8, 23):
        raise unsupported(eqn, "a precision other than float32's")
    return x


@lowers(
    "copy", "copy_p", "stop_gradient", "optimization_barrier", "name", "device_put", "sharding_constraint", narrow=True
)  # fmt: skip
def identity(graph: Graph, eqn: JaxprEqn, *inputs: Value) -> list[Value]:
    """Pass the values through."""
    return list(inputs)
