"""Primitives that move elements and compute nothing."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.graph import MAX_FOLDED_ELEMENTS, Graph, Value
from covey.plans.lowering.registry import lowers, out_dtype, out_shape, tensor_shape

_FIRST = -(2**31)  # "before the first element" for a Slice that walks backwards


@lowers("broadcast_in_dim", narrow=True)
def broadcast_in_dim(graph: Graph, eqn: JaxprEqn, x: Value, *dynamic: Value) -> Value:
    """Insert axes of length 1 and leave the rest to NumPy broadcasting."""
    if x.shape == ():
        return x
    shape = [1] * len(out_shape(eqn))
    source = tensor_shape(eqn.invars[0].aval)
    padded = (1,) * (len(source) - len(x.shape)) + x.shape
    axes = list(map(int, eqn.params["broadcast_dimensions"]))
    axes += range(len(shape) - (len(source) - len(axes)), len(shape))  # a typed key brings its words along
    for axis, length in zip(axes, padded, strict=True):
        shape[axis] = length
    return graph.reshape(x, shape)


@lowers("reshape", narrow=True)
def reshape(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Change the shape, after a permutation if ``dimensions`` says so; a single number stays lazily broadcast."""
    if int(np.prod(x.shape)) == 1:
        return graph.reshape(x, ())
    x, order = graph.full(x, tensor_shape(eqn.invars[0].aval)), eqn.params.get("dimensions")
    return graph.reshape(x if order is None else graph.transpose(x, order), out_shape(eqn))


@lowers("squeeze")
def squeeze(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Drop axes of length 1."""
    return graph.reshape(x, out_shape(eqn))


@lowers("transpose")
def transpose(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Permute the axes."""
    permutation = list(map(int, eqn.params["permutation"]))
    return graph.transpose(x, permutation + list(range(len(permutation), len(x.shape))))


@lowers("iota", narrow=True)
def iota(graph: Graph, eqn: JaxprEqn) -> Value:
    """Count along one axis; the others stay lazily broadcast."""
    axis, length = int(eqn.params["dimension"]), int(eqn.params["shape"][eqn.params["dimension"]])
    shape = [length if d == axis else 1 for d in range(len(eqn.params["shape"]))]
    return graph.reshape(counting(graph, length, out_dtype(eqn)), shape)


def counting(graph: Graph, length: int, dtype: np.typing.DTypeLike) -> Value:
    """Return 0, 1, ..., length - 1; as a Range where the constant would be large."""
    if length <= MAX_FOLDED_ELEMENTS:
        return graph.const(np.arange(length).astype(dtype))
    bounds = [graph.const(np.array(n, np.int64)) for n in (0, length, 1)]
    return graph.cast(graph.op("Range", bounds, (length,), np.int64), dtype)


@lowers("rev")
def reverse(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Turn axes round."""
    axes = [int(d) for d in eqn.params["dimensions"] if x.shape[d] != 1]
    if not axes:
        return x
    n = len(axes)
    steps = graph.ints([-1] * n)
    return graph.op("Slice", [x, steps, graph.ints([_FIRST] * n), graph.ints(axes), steps], x.shape, x.dtype)


def slice_axes(
    graph: Graph, x: Value, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int] | None = None
) -> Value:
    """Cut ``x`` along every axis; axes that stay whole are left out of the node."""
    steps = steps or [1] * len(starts)
    cut = [d for d, n in enumerate(x.shape) if (starts[d], stops[d], steps[d]) != (0, n, 1)]
    shape = tuple(max(0, -(-(b - a) // s)) for a, b, s in zip(starts, stops, steps, strict=True))
    if not cut:
        return x
    if x.known is not None and x.known.size <= MAX_FOLDED_ELEMENTS:
        return graph.const(x.known[tuple(slice(a, b, s) for a, b, s in zip(starts, stops, steps, strict=True))])
    pick = [graph.ints(v[d] for d in cut) for v in (starts, stops)]
    return graph.op("Slice", [x, *pick, graph.ints(cut), graph.ints(steps[d] for d in cut)], shape, x.dtype)


@lowers("slice")
def slice_(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Cut a box with constant bounds."""
    p = eqn.params
    words = x.shape[len(p["start_indices"]) :]  # of keys; nothing otherwise
    steps = p["strides"] or [1] * len(p["start_indices"])
    return slice_axes(graph, x, [*p["start_indices"], *(0 for _ in words)], [*p["limit_indices"], *words],
                      [*steps, *(1 for _ in words)])  # fmt: skip


@lowers("concatenate")
def concatenate(graph: Graph, eqn: JaxprEqn, *parts: Value) -> Value:
    """Join along an axis."""
    return join(graph, parts, int(eqn.params["dimension"]))


def join(graph: Graph, parts: Sequence[Value], axis: int) -> Value:
    """Join along an axis, leaving out what is empty."""
    some = [p for p in parts if p.shape[axis]] or list(parts[:1])
    if len(some) == 1:
        return some[0]
    shape = list(some[0].shape)
    shape[axis] = sum(p.shape[axis] for p in some)
    return graph.op("Concat", some, shape, some[0].dtype, axis=axis)


@lowers("stack")
def stack(graph: Graph, eqn: JaxprEqn, *parts: Value) -> Value:
    """Join along a new axis."""
    axis = int(eqn.params["axis"])
    return join(graph, [graph.reshape(p, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts], axis)


@lowers("split")
def split(graph: Graph, eqn: JaxprEqn, x: Value) -> Sequence[Value]:
    """Cut into consecutive parts along an axis."""
    if len(eqn.outvars) == 1:
        return [x]
    shapes = [(out_shape(eqn, i), x.dtype) for i in range(len(eqn.outvars))]
    return graph.ops("Split", [x, graph.ints(eqn.params["sizes"])], shapes, axis=int(eqn.params["axis"]))


@lowers("unstack")
def unstack(graph: Graph, eqn: JaxprEqn, x: Value) -> Sequence[Value]:
    """Cut into slices and drop the axis."""
    axis, n = int(eqn.params["axis"]), len(eqn.outvars)
    if n == 1:
        return [graph.reshape(x, out_shape(eqn))]
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    parts = graph.ops("Split", [x, graph.ints([1] * n)], [(shape, x.dtype)] * n, axis=axis)
    return [graph.reshape(p, out_shape(eqn)) for p in parts]


@lowers("tile")
def tile(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Repeat the whole along axes."""
    return graph.op("Tile", [x, graph.ints(eqn.params["reps"])], out_shape(eqn), x.dtype)


@lowers("pad")
def pad(graph: Graph, eqn: JaxprEqn, x: Value, filler: Value) -> Value:
    """Pad, crop (negative amounts) and spread (amounts between elements)."""
    return pad_axes(graph, x, filler, [tuple(map(int, c)) for c in eqn.params["padding_config"]])


def pad_axes(graph: Graph, x: Value, filler: Value, config: Sequence[Sequence[int]]) -> Value:
    """Apply ``(low, high, between)`` for each axis.

    Elements are spread by giving each a short axis of its own, padding that and merging the axes again; the filler
    after the last element is then cropped.
    """
    edges: list[tuple[int, int]] = []
    for axis, (low, high, between) in enumerate(config):
        n = x.shape[axis]
        if between and n > 1:
            x = graph.reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
            x = _pad_edges(graph, x, filler, [(0, between if d == axis + 1 else 0) for d in range(len(x.shape))])
            x = graph.reshape(x, (*x.shape[:axis], n * (between + 1), *x.shape[axis + 2 :]))
            high -= between
        edges.append((low, high))
    return _pad_edges(graph, x, filler, edges)


def _pad_edges(graph: Graph, x: Value, filler: Value, edges: Sequence[tuple[int, int]]) -> Value:
    """Crop where an amount is negative, then pad where it is positive."""
    x = slice_axes(
        graph, x, [max(0, -a) for a, _ in edges], [n - max(0, -b) for n, (_, b) in zip(x.shape, edges, strict=True)]
    )
    edges = [(max(0, a), max(0, b)) for a, b in edges]
    if not any(a or b for a, b in edges):
        return x
    amounts = graph.ints([a for a, _ in edges] + [b for _, b in edges])
    shape = [n + a + b for n, (a, b) in zip(x.shape, edges, strict=True)]
    return graph.op("Pad", [x, amounts, graph.reshape(filler, ())], shape, x.dtype)
