"""Gather and scatter.

XLA's operators take windows of any shape at computed places. Here each becomes one ONNX operator on a flattened
operand: the trailing axes that every window covers whole stay as they are, the axes before them are merged into one,
and the place of every element on that axis is computed. For the common cases (an embedding, ``take_along_axis``) the
computation is empty or a single addition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from covey.plans.lowering.elementwise import arithmetic, compare, like, select
from covey.plans.lowering.graph import Graph, Shape, Value
from covey.plans.lowering.registry import lowers, out_shape
from covey.plans.lowering.shapes import join, slice_axes


@dataclass(frozen=True, slots=True)
class _Places:
    """Where windows start.

    Attributes:
        flat: index of each window's first element on the merged axis, int64; its axes are the index array's.
        inside: where the window lies within the operand; None where that is known for all.
    """

    flat: Value
    inside: Value | None


def _strides(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[d + 1 :]) for d in range(len(shape))]


def _places(
    graph: Graph, starts: Value, batch_axes: Sequence[tuple[int, int]], axes: Sequence[int], merged: Shape,
    window: Sequence[int],
) -> _Places:  # fmt: skip
    """Compute places from index vectors (last axis of ``starts``), clamped into the operand.

    Args:
        graph: where the nodes go.
        starts: index vectors, ``[..., len(axes)]``.
        batch_axes: pairs (operand axis, axis of ``starts``) that run in step.
        axes: operand axis of each component.
        merged: lengths of the operand's leading axes, which are merged into one.
        window: lengths of the windows on these axes.
    """
    strides = _strides(merged)
    lead = starts.shape[:-1]
    flat = graph.const(np.zeros((), np.int64))
    inside: Value | None = None
    for component, axis in enumerate(axes):
        start = slice_axes(graph, starts, [0] * len(lead) + [component], [*lead, component + 1])
        start = graph.cast(graph.reshape(start, lead), np.int64)
        if axis >= len(merged):  # the windows cover this axis whole: only 0 is possible
            limit, stride = 0, 0
        else:
            limit, stride = merged[axis] - window[axis], strides[axis]
        clamped = _bounded(graph, start, limit)
        ok = compare(graph, "Equal", clamped, start)
        if not (ok.known is not None and ok.known.all()):
            inside = ok if inside is None else graph.broadcast("And", [inside, ok], np.bool_)
        if stride:
            flat = _add(graph, flat, _scale(graph, clamped, stride))
    for axis, place in batch_axes:
        if axis < len(merged):
            shape = [n if d == place else 1 for d, n in enumerate(lead)]
            flat = _add(
                graph, flat, graph.const((np.arange(lead[place], dtype=np.int64) * strides[axis]).reshape(shape))
            )
    return _Places(flat, inside)


def _bounded(graph: Graph, start: Value, limit: int) -> Value:
    if start.known is not None:
        return graph.const(np.clip(start.known, 0, limit))
    bounds = [graph.const(np.array(n, np.int64)) for n in (0, limit)]
    return graph.op("Clip", [start, *bounds], start.shape, np.int64)


def _add(graph: Graph, a: Value, b: Value) -> Value:
    if a.known is not None and not a.known.any() and len(a.shape) <= len(b.shape):
        return b
    if b.known is not None and not b.known.any() and len(b.shape) <= len(a.shape):
        return a
    return arithmetic(graph, "Add", a, b)


def _scale(graph: Graph, a: Value, factor: int) -> Value:
    return a if factor == 1 else arithmetic(graph, "Mul", a, like(graph, factor, a))


def _whole_suffix(shape: Shape, window: Sequence[int], free: Sequence[int]) -> int:
    """Return from which axis on every window covers the operand whole; only axes in ``free`` (kept ones) count."""
    cut = len(shape)
    while cut > 0 and window[cut - 1] == shape[cut - 1] and cut - 1 in free:
        cut -= 1
    return cut


def _window_offsets(graph: Graph, merged: Shape, window: Sequence[int], positions: dict[int, int], rank: int) -> Value:
    """Return the place of each window element relative to the window's first, laid out on ``rank`` axes.

    ``positions`` maps an operand axis to the axis of the layout that runs along the window.
    """
    strides = _strides(merged)
    offset = graph.const(np.zeros((), np.int64))
    for axis, place in positions.items():
        if axis < len(merged) and window[axis] > 1:
            shape = [window[axis] if d == place else 1 for d in range(rank)]
            offset = _add(
                graph, offset, graph.const((np.arange(window[axis], dtype=np.int64) * strides[axis]).reshape(shape))
            )
    return offset


@lowers("gather")
def gather(graph: Graph, eqn: JaxprEqn, x: Value, starts: Value) -> Value:
    """Take windows at computed places; what lies outside is filled or clamped, as the mode says."""
    p, d = eqn.params, eqn.params["dimension_numbers"]
    shape = out_shape(eqn)
    words = x.shape[len(p["slice_sizes"]) :]  # of keys; nothing otherwise
    window = [*map(int, p["slice_sizes"]), *words]
    dropped = {int(a) for a in (*d.collapsed_slice_dims, *d.operand_batching_dims)}
    kept = [a for a in range(len(x.shape)) if a not in dropped]
    last = range(len(shape) - len(words), len(shape))
    offset_axes = dict(zip(kept, [*map(int, d.offset_dims), *last], strict=True))
    batch = [a for a in range(len(shape)) if a not in offset_axes.values()]
    # An axis stays out of the index only if it is also the result's at the same distance from the end.
    free = [a for a, place in offset_axes.items() if len(x.shape) - a == len(shape) - place]
    cut = _whole_suffix(x.shape, window, free)
    merged, suffix = x.shape[:cut], x.shape[cut:]
    pairs = list(zip(map(int, d.operand_batching_dims), map(int, d.start_indices_batching_dims), strict=True))
    found = _places(graph, starts, pairs, list(map(int, d.start_index_map)), merged, window)
    rank = len(shape) - len(suffix)
    grid = shape[:rank]
    on_grid = [starts.shape[batch.index(a)] if a in batch else 1 for a in range(rank)]
    index = _align(graph, found.flat, on_grid)
    offsets = _window_offsets(graph, merged, window, offset_axes, rank)
    index = graph.full(_add(graph, index, offsets), grid)
    rows = graph.reshape(x, (math.prod(merged), *suffix))
    result = graph.op("Gather", [rows, index], shape, x.dtype, axis=0)
    if found.inside is None or p["mode"] != GatherScatterMode.FILL_OR_DROP:
        return result
    inside = graph.reshape(_align(graph, found.inside, on_grid), (*on_grid, *([1] * len(suffix))))
    return select(graph, inside, result, graph.const(_filler(p["fill_value"], x.dtype)))


def _align(graph: Graph, value: Value, shape: Sequence[int]) -> Value:
    """Lay a value of the index array's axes out on the result's axes."""
    return value if value.shape == () else graph.reshape(value, shape)


def _filler(given: float | None, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return what JAX fills with: NaN, the smallest signed or the largest unsigned integer, True."""
    if given is not None:
        return np.array(given, dtype)
    if dtype.kind == "f":
        return np.array(np.nan, dtype)
    if dtype.kind == "b":
        return np.array(True)
    return np.array(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max, dtype)


_REDUCTIONS = {"scatter": "none", **{f"scatter{dash}{r}": r for dash in "-_" for r in ("add", "mul", "min", "max")}}
_REDUCTIONS |= {"scatter-sub": "add", "scatter_sub": "add"}  # of the negated updates


@lowers(*_REDUCTIONS)
def scatter(graph: Graph, eqn: JaxprEqn, x: Value, starts: Value, updates: Value) -> Value:
    """Write or combine windows at computed places; windows that are not inside are dropped or clamped."""
    p, d = eqn.params, eqn.params["dimension_numbers"]
    if eqn.primitive.name.endswith("sub"):
        updates = arithmetic(graph, "Neg", updates)
    dropped = {int(a) for a in (*d.inserted_window_dims, *d.operand_batching_dims)}
    kept = [a for a in range(len(x.shape)) if a not in dropped]
    window_axes = dict(zip(kept, map(int, d.update_window_dims), strict=True))
    window = [updates.shape[window_axes[a]] if a in window_axes else 1 for a in range(len(x.shape))]
    batch = [a for a in range(len(updates.shape)) if a not in window_axes.values()]
    free = [a for a, place in window_axes.items() if len(x.shape) - a == len(updates.shape) - place]
    cut = _whole_suffix(x.shape, window, free)
    merged, suffix = x.shape[:cut], x.shape[cut:]
    pairs = list(zip(map(int, d.operand_batching_dims), map(int, d.scatter_indices_batching_dims), strict=True))
    found = _places(graph, starts, pairs, list(map(int, d.scatter_dims_to_operand_dims)), merged, window)
    rank = len(updates.shape) - len(suffix)
    on_grid = [starts.shape[batch.index(a)] if a in batch else 1 for a in range(rank)]
    offsets = _window_offsets(graph, merged, window, window_axes, rank)
    index = _add(graph, _align(graph, found.flat, on_grid), offsets)
    inside = (
        None if found.inside is None or p["mode"] == GatherScatterMode.CLIP else _align(graph, found.inside, on_grid)
    )
    return _scatter_rows(graph, eqn, x, index, inside, updates, rank, suffix)


def _scatter_rows(
    graph: Graph, eqn: JaxprEqn, x: Value, index: Value, inside: Value | None, updates: Value, rank: int, suffix: Shape
) -> Value:
    """Scatter rows of shape ``suffix``. Dropped ones add zero, or go to an extra row that is cut off afterwards."""
    reduction = _REDUCTIONS[eqn.primitive.name]
    count = math.prod(x.shape[: len(x.shape) - len(suffix)])
    rows = graph.reshape(x, (count, *suffix))
    if inside is not None and reduction == "add":
        mask = graph.reshape(inside, (*inside.shape, *([1] * len(suffix)))) if inside.shape else inside
        updates = select(graph, mask, updates, like(graph, 0, updates))
    elif inside is not None:
        rows = join(graph, [rows, graph.full(like(graph, 0, x), (1, *suffix))], 0)
        index = select(graph, inside, index, graph.const(np.array(count, np.int64)))
    grid = updates.shape[:rank]
    index = graph.reshape(graph.full(index, grid), (*grid, 1))
    done = graph.op("ScatterND", [rows, index, updates], rows.shape, x.dtype, reduction=reduction)
    if rows.shape[0] != count:
        done = slice_axes(graph, done, [0] * len(done.shape), [count, *suffix])
    return graph.reshape(done, x.shape)


@lowers("dynamic_slice")
def dynamic_slice(graph: Graph, eqn: JaxprEqn, x: Value, *starts: Value) -> Value:
    """Cut a box of constant size at a computed place, which is clamped so that the box fits."""
    words = x.shape[len(starts) :]  # of keys; nothing otherwise
    sizes = [*map(int, eqn.params["slice_sizes"]), *words]
    starts = (*starts, *(graph.const(np.zeros((), np.int32)) for _ in words))
    places = [_bounded(graph, graph.cast(s, np.int64), n - k) for s, n, k in zip(starts, x.shape, sizes, strict=True)]
    lows = [0 if p.known is None else int(p.known) for p in places]
    free = [d for d, p in enumerate(places) if p.known is None]
    x = slice_axes(
        graph,
        x,
        lows,
        [n if d in free else a + k for d, (n, a, k) in enumerate(zip(x.shape, lows, sizes, strict=True))],
    )
    free = [d for d in free if x.shape[d] != sizes[d]]
    if not free:
        return x
    begin = join(graph, [graph.reshape(places[d], (1,)) for d in free], 0)
    end = arithmetic(graph, "Add", begin, graph.ints(sizes[d] for d in free))
    return graph.op("Slice", [x, begin, end, graph.ints(free)], sizes, x.dtype)


@lowers("dynamic_update_slice")
def dynamic_update_slice(graph: Graph, eqn: JaxprEqn, x: Value, update: Value, *starts: Value) -> Value:
    """Write a box at a computed place, which is clamped so that the box fits."""
    if not x.shape or update.shape == x.shape:
        return update
    cut = _whole_suffix(x.shape, update.shape, range(len(x.shape)))
    merged, suffix = x.shape[:cut], x.shape[cut:]
    strides = _strides(merged)
    index = graph.const(np.zeros((), np.int64))
    for d in range(cut):
        place = _bounded(graph, graph.cast(starts[d], np.int64), x.shape[d] - update.shape[d])
        index = _add(graph, index, _scale(graph, place, strides[d]))
    index = _add(graph, index, _window_offsets(graph, merged, update.shape, {d: d for d in range(cut)}, cut))
    rows = graph.reshape(x, (math.prod(merged), *suffix))
    grid = update.shape[:cut]
    index = graph.reshape(graph.full(index, grid), (*grid, 1))
    done = graph.op("ScatterND", [rows, index, update], rows.shape, x.dtype, reduction="none")
    return graph.reshape(done, x.shape)
