"""Sums and other reductions along axes, running ones, and the order of elements."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.elementwise import arithmetic, compare, like, log1p, select
from covey.plans.lowering.graph import Graph, Value
from covey.plans.lowering.registry import lowers, out_dtype, out_shape, tensor_shape, unsupported
from covey.plans.lowering.shapes import join, pad_axes, slice_axes


def reduce(graph: Graph, op: str, x: Value, axes: Sequence[int]) -> Value:
    """Reduce and drop axes; axes of length 1 are only dropped."""
    shape = tuple(n for d, n in enumerate(x.shape) if d not in axes)
    real = [int(d) for d in axes if x.shape[d] != 1]
    if not real:
        return graph.reshape(x, shape)
    kept = tuple(n for d, n in enumerate(x.shape) if d not in real)
    return graph.reshape(graph.op(op, [x, graph.ints(real)], kept, x.dtype, keepdims=0), shape)


def _aligned(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Give a lazily broadcast value JAX's rank, its axes of length 1 staying narrow."""
    rank = len(tensor_shape(eqn.invars[0].aval))
    return graph.reshape(x, (1,) * (rank - len(x.shape)) + x.shape)


def _integer_safe(graph: Graph, op: str, x: Value, axes: Sequence[int]) -> Value:
    """Reduce; integer types that reductions lack go through int64, and so do sums of int32, which would not wrap."""
    if x.dtype.name in ("uint32", "uint8", "int8") or (op == "ReduceSum" and x.dtype == np.int32):
        return graph.cast(reduce(graph, op, graph.cast(x, np.int64), axes), x.dtype)
    return reduce(graph, op, x, axes)


@lowers("reduce_sum", narrow=True)
def reduce_sum(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Sum; over an axis that is only a broadcast, multiply."""
    axes = list(map(int, eqn.params["axes"]))
    shape = tensor_shape(eqn.invars[0].aval)
    x = _aligned(graph, eqn, x)
    repeats = math.prod(shape[d] for d in axes if x.shape[d] == 1)
    total = _integer_safe(graph, "ReduceSum", x, axes)
    return total if repeats == 1 else arithmetic(graph, "Mul", total, like(graph, repeats, x))


def _extremum(op: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
        return _integer_safe(graph, op, _aligned(graph, eqn, x), eqn.params["axes"])

    return rule


lowers("reduce_max", narrow=True)(_extremum("ReduceMax"))
lowers("reduce_min", narrow=True)(_extremum("ReduceMin"))


@lowers("reduce_prod")
def reduce_prod(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Multiply along axes; integers in pairs, for onnxruntime's ReduceProd does not wrap them."""
    axes = list(map(int, eqn.params["axes"]))
    if x.dtype.kind in "iu":
        for axis in axes:
            while x.shape[axis] > 1:
                x = _halved(graph, x, axis)
    return _integer_safe(graph, "ReduceProd", x, axes)


def _halved(graph: Graph, x: Value, axis: int) -> Value:
    """Multiply the first half along an axis by the second; a last element without a partner stays."""
    n, half = x.shape[axis], x.shape[axis] // 2

    def part(start: int, stop: int) -> Value:
        lows = [start if d == axis else 0 for d in range(len(x.shape))]
        return slice_axes(graph, x, lows, [stop if d == axis else size for d, size in enumerate(x.shape)])

    pairs = arithmetic(graph, "Mul", part(0, half), part(half, 2 * half))
    return join(graph, [pairs, part(2 * half, n)], axis) if n % 2 else pairs


def _logical(op: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
        if x.dtype != np.bool_:
            raise unsupported(eqn, f"on {x.dtype}", "reduce booleans")
        numbers = graph.cast(_aligned(graph, eqn, x), np.int32)
        return graph.cast(reduce(graph, op, numbers, eqn.params["axes"]), np.bool_)

    return rule


lowers("reduce_or", narrow=True)(_logical("ReduceMax"))
lowers("reduce_and", narrow=True)(_logical("ReduceMin"))


def _arg(op: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
        (axis,) = eqn.params["axes"]
        if x.dtype == np.bool_ or x.dtype == np.uint32:
            x = graph.cast(x, np.int64)
        index = graph.op(op, [x], out_shape(eqn), np.int64, axis=int(axis), keepdims=0, select_last_index=0)
        return graph.cast(index, out_dtype(eqn))

    return rule


lowers("argmax")(_arg("ArgMax"))
lowers("argmin")(_arg("ArgMin"))


@lowers("cumsum")
def cumulative_sum(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Sum along an axis, keeping each partial sum."""
    axis = graph.const(np.array(eqn.params["axis"], np.int64))
    wide = graph.cast(x, np.int64) if x.dtype.name in ("uint32", "uint8", "int8") else x
    total = graph.op("CumSum", [wide, axis], x.shape, wide.dtype, reverse=int(eqn.params["reverse"]))
    return graph.cast(total, x.dtype)


def _doubling(
    combine: Callable[[Graph, Value, Value], Value], neutral: Callable[[Value], float]
) -> Callable[..., Value]:
    """Make a rule for a running operation from the operation: log2(n) rounds, each on the last one's shifted result."""

    def rule(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
        axis, n = int(eqn.params["axis"]), x.shape[eqn.params["axis"]]
        filler = like(graph, neutral(x), x)
        step = 1
        while step < n:
            low, high = (-step, step) if eqn.params["reverse"] else (step, -step)
            shift = [(low, high, 0) if d == axis else (0, 0, 0) for d in range(len(x.shape))]
            x = combine(graph, x, pad_axes(graph, x, filler, shift))
            step *= 2
        return x

    return rule


def _lowest(x: Value) -> float:
    return -math.inf if np.issubdtype(x.dtype, np.floating) else int(np.iinfo(x.dtype).min)


def _highest(x: Value) -> float:
    return math.inf if np.issubdtype(x.dtype, np.floating) else int(np.iinfo(x.dtype).max)


def _log_add_exp(graph: Graph, a: Value, b: Value) -> Value:
    """Return log(exp(a) + exp(b)); two minus infinities give minus infinity."""
    largest, smallest = arithmetic(graph, "Max", a, b), arithmetic(graph, "Min", a, b)
    empty = compare(graph, "Equal", largest, like(graph, -math.inf, a))
    gap = select(graph, empty, like(graph, 0, a), arithmetic(graph, "Sub", smallest, largest))
    ratio = graph.op("Exp", [gap], gap.shape, gap.dtype)
    return arithmetic(graph, "Add", largest, log1p(graph, None, ratio))  # type: ignore[arg-type]


lowers("cummax")(_doubling(lambda g, a, b: arithmetic(g, "Max", a, b), _lowest))
lowers("cummin")(_doubling(lambda g, a, b: arithmetic(g, "Min", a, b), _highest))
lowers("cumprod")(_doubling(lambda g, a, b: arithmetic(g, "Mul", a, b), lambda x: 1))
lowers("cumlogsumexp")(_doubling(_log_add_exp, _lowest))


def _ordered(graph: Graph, x: Value, axis: int, k: int, *, largest: bool) -> tuple[Value, Value]:
    """Return the first ``k`` in order and their int64 positions; equal ones keep their order."""
    dtype = x.dtype
    key = x if dtype.name in ("float32", "int32", "int64") else graph.cast(x, np.int64)
    shape = tuple(k if d == axis else n for d, n in enumerate(x.shape))
    values, order = graph.ops(
        "TopK", [key, graph.ints([k])], [(shape, key.dtype), (shape, np.int64)],
        axis=axis, largest=int(largest), sorted=1,
    )  # fmt: skip
    return graph.cast(values, dtype), order


@lowers("sort")
def sort(graph: Graph, eqn: JaxprEqn, *operands: Value) -> list[Value]:
    """Sort ascending by the first ``num_keys`` operands, stably; the others follow.

    Several keys are sorted one after the other, the least important first.
    """
    axis, keys = int(eqn.params["dimension"]), int(eqn.params["num_keys"])
    n = operands[0].shape[axis]
    current = list(operands)
    for key in reversed(range(keys)):
        values, order = _ordered(graph, current[key], axis, n, largest=False)
        current = [
            values if i == key else graph.op("GatherElements", [v, order], v.shape, v.dtype, axis=axis)
            for i, v in enumerate(current)
        ]
    return current


@lowers("top_k")
def top_k(graph: Graph, eqn: JaxprEqn, x: Value) -> list[Value]:
    """Return the largest ``k`` in descending order and their positions."""
    axis = int(eqn.params.get("axis", len(x.shape) - 1)) % len(x.shape)
    values, order = _ordered(graph, x, axis, int(eqn.params["k"]), largest=True)
    return [values, graph.cast(order, out_dtype(eqn, 1))]
