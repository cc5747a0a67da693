"""Pooling windows and their gradients.

A window may lie on any axes in JAX. Axes without a window become batch and channels, the others the image of ONNX's
pooling operators.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.elementwise import arithmetic, like
from covey.plans.lowering.graph import Attribute, Graph, Shape, Value
from covey.plans.lowering.registry import lowers, out_shape, unsupported
from covey.plans.lowering.shapes import pad_axes, slice_axes


@dataclass(frozen=True, slots=True)
class _Windows:
    """Where the windows lie: the order of axes, the shape given to ONNX, and the operator's attributes."""

    order: list[int]
    flat: Shape
    kernel: Shape
    strides: Shape
    pads: list[tuple[int, int]]
    dilations: Shape

    def attributes(self) -> dict[str, Attribute]:
        pads = tuple(a for a, _ in self.pads) + tuple(b for _, b in self.pads)
        result: dict[str, Attribute] = {"kernel_shape": self.kernel, "strides": self.strides, "pads": pads}
        if any(d != 1 for d in self.dilations):
            result["dilations"] = self.dilations
        return result

    def disjoint(self) -> bool:
        """Say whether no element is in two windows and none is padding."""
        overlap = any(s < k for k, s in zip(self.kernel, self.strides, strict=True))
        return not overlap and not any(a or b for a, b in self.pads) and all(d == 1 for d in self.dilations)


def _windows(eqn: JaxprEqn, shape: Shape) -> _Windows:
    p = eqn.params
    kernel, strides, pads = p["window_dimensions"], p["window_strides"], p["padding"]
    dilations = p.get("window_dilation") or (1,) * len(shape)
    axes = [d for d in range(len(shape)) if kernel[d] > 1 or strides[d] > 1 or tuple(pads[d]) != (0, 0)]
    axes = axes or [len(shape) - 1]
    if len(axes) > 3:
        raise unsupported(eqn, f"windows on {len(axes)} axes", "pool over at most three axes at once")
    rest = [d for d in range(len(shape)) if d not in axes]
    lead = [shape[d] for d in rest] if len(rest) == 2 else [1, math.prod(shape[d] for d in rest)]

    def pick(values: Sequence[Any]) -> Shape:
        return tuple(int(values[d]) for d in axes)

    return _Windows(
        rest + axes, (*lead, *pick(shape)), pick(kernel), pick(strides),
        [(int(pads[d][0]), int(pads[d][1])) for d in axes], pick(dilations),
    )  # fmt: skip


def _arrange(graph: Graph, x: Value, windows: _Windows) -> Value:
    """Bring the windowed axes to the end, behind a batch and a channel axis."""
    x = graph.transpose(x, windows.order)
    count = len(windows.kernel)
    lead = windows.flat[:2]
    return graph.reshape(x, (*lead, *x.shape[len(x.shape) - count :]))


def _restore(graph: Graph, x: Value, windows: _Windows, shape: Shape) -> Value:
    """Undo :func:`_arrange` for a result whose shape in JAX is ``shape``."""
    x = graph.reshape(x, [shape[d] for d in windows.order])
    return graph.transpose(x, [windows.order.index(d) for d in range(len(shape))])


def _explicit_padding(graph: Graph, x: Value, windows: _Windows, filler: float) -> tuple[Value, _Windows]:
    """Pad before pooling where a pad reaches a whole window, which ONNX's own padding does not allow."""
    if all(max(p) < k for p, k in zip(windows.pads, windows.kernel, strict=True)):
        return x, windows
    config = [(0, 0, 0)] * 2 + [(a, b, 0) for a, b in windows.pads]
    x = pad_axes(graph, x, like(graph, filler, x), config)
    none = [(0, 0)] * len(windows.pads)
    return x, _Windows(windows.order, x.shape, windows.kernel, windows.strides, none, windows.dilations)


def _spread(graph: Graph, eqn: JaxprEqn, x: Value, filler: float) -> Value:
    """Apply ``base_dilation``: fill between the elements."""
    spread = [int(d) - 1 for d in eqn.params.get("base_dilation") or (1,) * len(x.shape)]
    return pad_axes(graph, x, like(graph, filler, x), [(0, 0, s) for s in spread])


def _float_only(eqn: JaxprEqn, x: Value) -> None:
    if x.dtype != np.float32:
        raise unsupported(eqn, f"on {x.dtype}", "convert to float32 first")


def _max_pool(graph: Graph, x: Value, windows: _Windows) -> tuple[Value, Value]:
    """Return the maxima and where they lie: the first in a window, as in XLA, as an index into the flat input.

    Value and gradient share the one node; where the indices go unused they are dropped from it at the end.
    """
    space = zip(x.shape[2:], windows.kernel, windows.strides, windows.pads, windows.dilations, strict=True)
    out = (*x.shape[:2], *((n + sum(p) - ((k - 1) * d + 1)) // s + 1 for n, k, s, p, d in space))
    best, where = graph.ops("MaxPool", [x], [(out, x.dtype), (out, np.int64)], **windows.attributes())
    return best, where


@lowers("reduce_window_max")
def window_max(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Take the maximum of each window."""
    _float_only(eqn, x)
    x = _spread(graph, eqn, x, -np.inf)
    windows = _windows(eqn, x.shape)
    flat, inner = _explicit_padding(graph, _arrange(graph, x, windows), windows, -np.inf)
    return _restore(graph, _max_pool(graph, flat, inner)[0], windows, out_shape(eqn))


@lowers("reduce_window_min")
def window_min(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Take the minimum of each window: the negated maximum of the negative."""
    _float_only(eqn, x)
    return arithmetic(graph, "Neg", window_max(graph, eqn, arithmetic(graph, "Neg", x)))


@lowers("reduce_window_sum")
def window_sum(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Sum each window: its mean, padding included, times its size."""
    _float_only(eqn, x)
    x = _spread(graph, eqn, x, 0.0)
    windows = _windows(eqn, x.shape)
    flat, inner = _explicit_padding(graph, _arrange(graph, x, windows), windows, 0.0)
    space = zip(flat.shape[2:], inner.kernel, inner.strides, inner.pads, inner.dilations, strict=True)
    out = (*flat.shape[:2], *((n + sum(p) - ((k - 1) * d + 1)) // s + 1 for n, k, s, p, d in space))
    mean = graph.op("AveragePool", [flat], out, x.dtype, count_include_pad=1, **inner.attributes())
    total = arithmetic(graph, "Mul", mean, like(graph, math.prod(inner.kernel), mean))
    return _restore(graph, total, windows, out_shape(eqn))


@lowers("select_and_scatter_add")
def max_pool_gradient(graph: Graph, eqn: JaxprEqn, source: Value, x: Value) -> Value:
    """Send each window's cotangent to the window's maximum."""
    flat, windows, where = _selection(graph, eqn, x)
    sent = graph.reshape(_arrange(graph, source, windows), where.shape)
    if windows.disjoint():
        spread = graph.op(
            "MaxUnpool", [sent, where, graph.ints(flat.shape)], flat.shape, x.dtype,
            kernel_shape=windows.kernel, strides=windows.strides,
        )  # fmt: skip
    else:
        size = math.prod(flat.shape)
        zeros = graph.full(like(graph, 0, x), (size,))
        flat_where, flat_sent = graph.reshape(where, (where_size(where),)), graph.reshape(sent, (where_size(where),))
        spread = graph.op("ScatterElements", [zeros, flat_where, flat_sent], (size,), x.dtype, axis=0, reduction="add")
        spread = graph.reshape(spread, flat.shape)
    return _restore(graph, _crop(graph, spread, windows.flat, eqn, x), windows, out_shape(eqn))


@lowers("select_and_gather_add")
def max_pool_tangent(graph: Graph, eqn: JaxprEqn, tangents: Value, x: Value) -> Value:
    """Take the tangent of each window's maximum (forward-mode differentiation)."""
    flat, windows, where = _selection(graph, eqn, x)
    if flat.shape != windows.flat:
        raise unsupported(eqn, "padding of a whole window", "pad the input before pooling")
    values = graph.reshape(_arrange(graph, tangents, windows), (math.prod(flat.shape),))
    return _restore(graph, graph.op("Gather", [values, where], where.shape, x.dtype, axis=0), windows, out_shape(eqn))


def where_size(where: Value) -> int:
    """Return how many windows there are."""
    return math.prod(where.shape)


def _selection(graph: Graph, eqn: JaxprEqn, x: Value) -> tuple[Value, _Windows, Value]:
    """Return the arranged input, its windows and where each window's maximum lies."""
    _float_only(eqn, x)
    if str(eqn.params["select_prim"]) != "ge":
        raise unsupported(eqn, "selecting minima", "pool the maximum of the negative instead")
    windows = _windows(eqn, x.shape)
    flat, inner = _explicit_padding(graph, _arrange(graph, x, windows), windows, -np.inf)
    return flat, inner, _max_pool(graph, flat, inner)[1]


def _crop(graph: Graph, x: Value, padded: Shape, eqn: JaxprEqn, original: Value) -> Value:
    """Undo explicit padding, if there was any."""
    windows = _windows(eqn, original.shape)
    if x.shape == windows.flat:
        return x
    lows: Sequence[Any] = [0, 0, *(a for a, _ in windows.pads)]
    return slice_axes(graph, x, lows, [a + n for a, n in zip(lows, windows.flat, strict=True)])
