"""conv_general_dilated: forward, and both gradients, which JAX writes as convolutions with unusual axes."""

from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.graph import Graph, Value
from covey.plans.lowering.registry import lowers, out_dtype, out_shape, unsupported
from covey.plans.lowering.shapes import pad_axes


@lowers("conv_general_dilated")
def convolution(graph: Graph, eqn: JaxprEqn, x: Value, kernel: Value) -> Value:
    """Convolve. Strides, groups and kernel dilation are Conv's own; input dilation spreads the input first.

    ``batch_group_count`` G (the weight gradient of a grouped convolution) convolves the g-th part of the batch with
    the g-th part of the kernels: moved from the batch to the channels, that is a grouped convolution.
    """
    p = eqn.params
    axes, groups = p["dimension_numbers"], int(p["feature_group_count"])
    if out_dtype(eqn) != np.float32:
        raise unsupported(eqn, f"on {out_dtype(eqn)}", "convert to float32 first")
    x, kernel = graph.transpose(x, axes.lhs_spec), graph.transpose(kernel, axes.rhs_spec)
    batch_groups = int(p["batch_group_count"])
    if batch_groups > 1:
        x, groups = _batch_to_channels(graph, x, batch_groups), batch_groups
    padding = [(int(a), int(b)) for a, b in p["padding"]]
    zero = graph.const(np.zeros((), np.float32))
    if any(d != 1 for d in p["lhs_dilation"]):
        x = pad_axes(graph, x, zero, [(0, 0, 0)] * 2 + [(0, 0, int(d) - 1) for d in p["lhs_dilation"]])
    if any(min(pair) < 0 for pair in padding):
        x = pad_axes(graph, x, zero, [(0, 0, 0)] * 2 + [(a, b, 0) for a, b in padding])
        padding = [(0, 0)] * len(padding)
    result = graph.op(
        "Conv",
        [x, kernel],
        [out_shape(eqn)[d] for d in axes.out_spec],
        np.float32,
        strides=tuple(map(int, p["window_strides"])),
        dilations=tuple(map(int, p["rhs_dilation"])),
        group=groups,
        pads=tuple(a for a, _ in padding) + tuple(b for _, b in padding),
        kernel_shape=kernel.shape[2:],
    )
    return graph.transpose(result, _inverse(axes.out_spec))


def _batch_to_channels(graph: Graph, x: Value, groups: int) -> Value:
    """Turn [G·N, C, ...] into [N, G·C, ...]."""
    n, c, *space = x.shape
    x = graph.reshape(x, (groups, n // groups, c, *space))
    x = graph.transpose(x, (1, 0, 2, *range(3, 3 + len(space))))
    return graph.reshape(x, (n // groups, groups * c, *space))


def _inverse(permutation: Sequence[int]) -> list[int]:
    return [list(permutation).index(d) for d in range(len(permutation))]
