"""Convolutions as sums and matrix products, where that is faster on a CPU than XLA's own convolution.

A rule for :mod:`covey.simulation.rewriting`. It sees single equations: a model's convolutions and those that their
gradients are. An input's gradient is a convolution with a reversed kernel; a kernel's gradient is one whose kernel is
as large as the image and whose output is as small as a kernel. Images are brought to [batch, height, width, channels]
and kernels to [inputs, outputs, height, width]; XLA makes most of these transpositions a choice of layout.

- One input channel: all windows as the columns of a matrix, and one product.
- Otherwise minimal filtering (:mod:`covey.simulation.minimal_filtering`) on both axes: image and kernel are transformed
  to points, at each point stands one product [tiles, inputs] x [inputs, outputs], and its results are transformed back.
  F(4, 5) on both axes takes 64 products of numbers where 400 are taken otherwise.

A filter's transpose needs as few products. Inputs of the filter are made of the tensor with fewer channels, its outputs
of the one with more, in all three equations of a layer: what they transform alike, XLA computes once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from covey.simulation.minimal_filtering import (
    MAX_TAPS,
    Matrix,
    minimal_filter,
    num_outputs,
    transposed,
)

__all__ = ["Maker", "convolved"]

Maker = tuple[JaxprEqn, Sequence[Any]] | None
"""The equation that made an operand, and its own operands."""

_MAX_COLUMN_INPUTS = 1
_MIN_FILTER_CHANNELS = 32
"""Measured: columns of three input channels, and 3 x 3 filters between sixteen, lose against XLA's convolution."""


class _Axis(NamedTuple):
    """One axis of an image: ``y[q] = sum over s of x[q + s - before] w[s]``."""

    size: int
    window: int
    before: int
    after: int

    @property
    def out(self) -> int:
        return self.size + self.before + self.after - self.window + 1


class _Tiles(NamedTuple):
    """Pieces of one axis: ``num`` pieces, the first at ``-before``, each ``step`` after the one before it."""

    matrix: Matrix
    step: int
    num: int
    before: int
    size: int


def convolved(eqn: JaxprEqn, operands: Sequence[Any], makers: Sequence[Maker]) -> Any | None:
    """Return what a ``conv_general_dilated`` equation computes; None: XLA's own convolution is the better choice."""
    p = eqn.params
    image, kernel = operands
    numbers = p["dimension_numbers"]
    dtypes = {str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars)}  # type: ignore[attr-defined]
    once = (*p["window_strides"], *p["lhs_dilation"], *p["rhs_dilation"])
    plain = {*once, p["feature_group_count"], p["batch_group_count"]} == {1} and p["precision"] is None
    if not plain or len(numbers.lhs_spec) != 4 or dtypes not in ({"float32"}, {"float64"}):
        return None
    batch, channels, *space = numbers.lhs_spec
    outputs, inputs, *window = numbers.rhs_spec
    n, k, *out = numbers.out_spec
    axes = [
        _Axis(image.shape[i], kernel.shape[j], *map(int, pads))
        for i, j, pads in zip(space, window, p["padding"], strict=True)
    ]
    if all(a.out < a.window for a in axes):
        # [inputs, height, width, batch] is the layer's own image, and the kernel here the gradient of its outputs.
        image, kernel = image.transpose(channels, *space, batch), kernel.transpose(inputs, *window, outputs)
        gradient = _gradient_form(axes, image, kernel)
        if gradient is None:
            return None
        result = gradient(axes, image, kernel)  # [inputs, outputs, height, width]
        return result.transpose(np.argsort([n, k, *out]))
    image = image.transpose(batch, *space, channels)
    form = _form(axes, image.shape[-1], kernel.shape[outputs])
    if form is None:
        return None
    if form is _filtered_back:
        # The gradient's kernel is the layer's own, reversed: turned back, both layers' points are the same.
        kernel = _reversed(kernel, makers[1], window)
    result = form(axes, image, kernel.transpose(inputs, outputs, *window))
    return result.transpose(np.argsort([n, *out, k]))


def _reversed(kernel: Any, maker: Maker, window: Sequence[int]) -> Any:
    if maker and maker[0].primitive.name == "rev" and sorted(maker[0].params["dimensions"]) == sorted(window):
        return maker[1][0]
    return lax.rev(kernel, tuple(window))


_Form = Callable[[Sequence[_Axis], Any, Any], Any]


def _form(axes: Sequence[_Axis], num_inputs: int, num_channels: int) -> _Form | None:
    if any(min(a.before, a.after) < 0 or max(a.before, a.after) >= a.window for a in axes):
        return None
    if num_inputs <= _MAX_COLUMN_INPUTS and all(a.window <= MAX_TAPS for a in axes):
        return _columns_product
    if all(1 < a.window <= MAX_TAPS for a in axes) and min(num_inputs, num_channels) >= _MIN_FILTER_CHANNELS:
        return _filtered if num_inputs <= num_channels else _filtered_back
    return None


def _gradient_form(axes: Sequence[_Axis], image: Any, errors: Any) -> _Form | None:
    num_inputs, num_channels = image.shape[-1], errors.shape[-1]
    if any(min(a.before, a.after) < 0 or max(a.before, a.after) >= a.out for a in axes):
        return None
    if num_inputs <= _MAX_COLUMN_INPUTS and all(a.out <= MAX_TAPS for a in axes):
        return _columns_gradient
    if all(1 < a.out <= MAX_TAPS for a in axes) and min(num_inputs, num_channels) >= _MIN_FILTER_CHANNELS:
        return _filter_gradient
    return None


def _columns(image: Any, before: Sequence[int], after: Sequence[int], window: Sequence[int]) -> Any:
    """Return the windows of [B, H, W, C] as [window and C, B and places]."""
    image = jnp.pad(image.transpose(3, 0, 1, 2), [(0, 0), (0, 0), *zip(before, after, strict=True)])
    height, width = (n - r + 1 for n, r in zip(image.shape[2:], window, strict=True))
    shifted = [image[:, :, i : i + height, j : j + width] for i in range(window[0]) for j in range(window[1])]
    return jnp.stack(shifted).reshape(len(shifted) * image.shape[0], -1)


def _columns_product(axes: Sequence[_Axis], image: Any, kernel: Any) -> Any:
    columns = _columns(image, [a.before for a in axes], [a.after for a in axes], [a.window for a in axes])
    weights = kernel.transpose(2, 3, 0, 1).reshape(-1, kernel.shape[1])
    result = lax.dot_general(columns, weights, (((0,), (0,)), ((), ())))
    return result.reshape(image.shape[0], *(a.out for a in axes), -1)


def _columns_gradient(axes: Sequence[_Axis], image: Any, errors: Any) -> Any:
    columns = _columns(image, [a.before for a in axes], [a.after for a in axes], [a.out for a in axes])
    result = columns @ errors.reshape(-1, errors.shape[-1])
    return result.reshape(*(a.out for a in axes), image.shape[-1], -1).transpose(2, 3, 0, 1)


def _filtered(axes: Sequence[_Axis], image: Any, kernel: Any) -> Any:
    """Convolve by minimal filters; outputs are at least as many as inputs."""
    filters = [_tilings(a.out, a.window, a.before, a.size) for a in axes]
    points = _to_points(image, [f.inputs for f in filters])
    products = lax.dot_general(points, _factors(kernel, filters), (((2,), (1,)), ((0,), (0,))))
    return _from_points(products, image.shape[0], [f.outputs for f in filters])


def _filtered_back(axes: Sequence[_Axis], image: Any, kernel: Any) -> Any:
    """Convolve with the reverse of ``kernel`` by transposed filters: the image stands where outputs do."""
    filters = [_tilings(a.size, a.window, a.window - 1 - a.before, a.out) for a in axes]
    points = _to_points(image, [f.outputs for f in filters])
    products = lax.dot_general(points, _factors(kernel.swapaxes(0, 1), filters), (((2,), (2,)), ((0,), (0,))))
    return _from_points(products, image.shape[0], [f.inputs for f in filters])


def _filter_gradient(axes: Sequence[_Axis], image: Any, errors: Any) -> Any:
    """Return the gradient of a kernel, [inputs, outputs, height, width], as the gradient of the filters' taps."""
    if image.shape[-1] <= errors.shape[-1]:
        filters = [_tilings(a.window, a.out, a.before, a.size) for a in axes]
        return _taps_gradient(filters, image, errors)
    filters = [_tilings(a.size, a.out, a.out - 1 - a.before, a.window) for a in axes]
    return _taps_gradient(filters, errors, image)[:, :, ::-1, ::-1].swapaxes(0, 1)


def _taps_gradient(filters: "Sequence[_Tilings]", inputs: Any, outputs: Any) -> Any:
    a = _to_points(inputs, [f.inputs for f in filters])
    b = _to_points(outputs, [f.outputs for f in filters])
    products = lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))
    taps = lax.dot_general(products, _taps(filters, a.dtype), (((0,), (0,)), ((), ())))
    return taps.reshape(*taps.shape[:2], *(len(f.taps[0]) for f in filters))


def _factors(kernel: Any, filters: "Sequence[_Tilings]") -> Any:
    """Transform [a, b, height, width] to [points, a, b]; a is the side with fewer channels, in both directions."""
    flat = kernel.reshape(*kernel.shape[:2], -1)
    return lax.dot_general(_taps(filters, kernel.dtype), flat, (((1,), (2,)), ((), ())))


def _taps(filters: "Sequence[_Tilings]", dtype: Any) -> Any:
    """Return the matrix of both axes' taps, [points, height and width]: kernels are small enough for a product."""
    rows, columns = (np.array(f.taps, dtype) for f in filters)
    return np.einsum("ax,by->abyx", columns, rows).reshape(len(columns) * len(rows), -1)


class _Tilings(NamedTuple):
    """How one axis of a filter's outputs and inputs is cut, and what becomes of its taps."""

    outputs: _Tiles
    taps: Matrix
    inputs: _Tiles


def _tilings(outputs: int, taps: int, before: int, inputs: int) -> _Tilings:
    step = num_outputs(outputs, taps)
    num = -(-outputs // step)
    matrices = minimal_filter(step, taps)
    return _Tilings(
        _Tiles(matrices.outputs, step, num, 0, outputs),
        matrices.taps,
        _Tiles(matrices.inputs, step, num, before, inputs),
    )


def _to_points(x: Any, tiles: Sequence[_Tiles]) -> Any:
    """Transform [batch, height, width, C] to [points, batch and tiles, C]."""
    x = _split(x, 1, tiles[0])
    x = _split(x, 3, tiles[1])  # behind the points of the first, and its tiles
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


def _from_points(x: Any, batch: int, tiles: Sequence[_Tiles]) -> Any:
    """Apply the transpose of :func:`_to_points`."""
    rows, columns = tiles
    x = x.reshape(len(columns.matrix), len(rows.matrix), batch, rows.num, columns.num, x.shape[-1])
    return _joined(_joined(x, 3, columns), 1, rows)


def _split(x: Any, axis: int, tiles: _Tiles) -> Any:
    """Cut an axis into tiles and multiply each by the matrix: [..., size, ...] -> [points, ..., num, ...]."""
    reach, span = len(tiles.matrix[0]), (tiles.num - 1) * tiles.step
    pads = [(0, 0)] * x.ndim
    pads[axis] = (tiles.before, span + reach - tiles.before - tiles.size)
    x = jnp.pad(x, pads)
    parts = [lax.slice_in_dim(x, i, i + span + 1, tiles.step, axis) for i in range(reach)]
    return jnp.stack(_combined(tiles.matrix, parts))


def _joined(x: Any, axis: int, tiles: _Tiles) -> Any:
    """Apply the transpose of :func:`_split`: [points, ..., num, ...] -> [..., size, ...], overlaps added."""
    places = _combined(transposed(tiles.matrix), list(x))
    overlaps = -(-len(places) // tiles.step)
    phases = []
    for phase in range(tiles.step):
        shifted = []
        for i, place in enumerate(places[phase :: tiles.step]):
            pads = [(0, 0)] * place.ndim
            pads[axis] = (i, overlaps - 1 - i)
            shifted.append(jnp.pad(place, pads))
        phases.append(sum(shifted[1:], shifted[0]))
    whole = jnp.stack(phases, axis + 1)
    shape = list(whole.shape)
    shape[axis : axis + 2] = [shape[axis] * tiles.step]
    return lax.slice_in_dim(whole.reshape(shape), tiles.before, tiles.before + tiles.size, axis=axis)


def _combined(matrix: Matrix, parts: Sequence[Any]) -> list[Any]:
    """Return matrix @ parts, without the terms that are zero."""
    results = []
    for row in matrix:
        terms = [p if c == 1 else -p if c == -1 else c * p for c, p in zip(row, parts, strict=True) if c]
        results.append(sum(terms[1:], terms[0]))
    return results
