"""Maxima of windows that do not overlap, and their gradients, as elementwise operations.

Rules for :mod:`covey.simulation.rewriting`. XLA searches and scatters window by window, which on a CPU costs as much as
a convolution; the maximum of strided slices, and a comparison with the place of the first maximum, cost next to nothing
when channels lie next to each other in memory. Results are XLA's, bit for bit, ties included: the first maximum of a
window takes its gradient.
"""

import itertools
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from covey.simulation.convolution import Maker

__all__ = ["max_pooled", "max_unpooled", "unpooled_sum"]


def max_pooled(eqn: JaxprEqn, operands: Sequence[Any], makers: Sequence[Maker]) -> Any | None:
    """Return what a ``reduce_window_max`` equation computes; None: its windows overlap or are otherwise unusual."""
    (x,) = operands
    windows = _windows(eqn, x)
    if windows is None:
        return None
    return windows.restored(reduce(jnp.maximum, _places(windows.arranged(x), windows.size)))


def max_unpooled(eqn: JaxprEqn, operands: Sequence[Any], makers: Sequence[Maker]) -> Any | None:
    """Return what a ``select_and_scatter_add`` equation computes; None as above."""
    errors, x = operands
    windows = _windows(eqn, x)
    if windows is None or eqn.params["select_prim"].name != "ge":
        return None
    height, width = windows.size
    arranged, errors = windows.arranged(x), windows.arranged(errors)
    best, *others = _places(arranged, windows.size)
    first = jnp.zeros(best.shape, np.int32)
    for i, place in enumerate(others, 1):
        keep = best >= place
        best, first = jnp.where(keep, best, place), jnp.where(keep, first, i)
    n, h, w, c = best.shape

    def spread(v: Any) -> Any:
        return jnp.broadcast_to(v[:, :, None, :, None], (n, h, height, w, width, c))

    place = lax.broadcasted_iota(np.int32, (n, h, height, w, width, c), 2) * width
    place += lax.broadcasted_iota(np.int32, (n, h, height, w, width, c), 4)
    result = jnp.where(spread(first) == place, spread(errors), 0).reshape(n, h * height, w * width, c)
    rest = [(0, a - b) for a, b in zip(arranged.shape, result.shape, strict=True)]  # what no window reaches
    return windows.restored(jnp.pad(result, rest))


def unpooled_sum(eqn: JaxprEqn, operands: Sequence[Any], makers: Sequence[Maker]) -> Any | None:
    """Return what a ``reduce_sum`` of a pooling's gradient computes, over the windows' axes at least: that of a bias.

    Every error has its place in just one window, so the errors themselves have the same sum. None: another sum.
    """
    if makers[0] is None or makers[0][0].primitive.name != "select_and_scatter_add":
        return None
    maker, (errors, x) = makers[0]
    windows = _windows(maker, x)
    axes = eqn.params["axes"]
    return None if windows is None or not {*windows.order[-3:-1]} <= {*axes} else jnp.sum(errors, axes)


class _Windows(NamedTuple):
    """Windows on two axes, which are ``order[-3:-1]``."""

    order: Sequence[int]
    size: Sequence[int]
    lead: Sequence[int]

    def arranged(self, x: Any) -> Any:
        """Return x as [rest, height, width, channels]."""
        x = x.transpose(self.order)
        return x.reshape(-1, *x.shape[-3:])

    def restored(self, x: Any) -> Any:
        """Undo :meth:`arranged`."""
        return x.reshape(*self.lead, *x.shape[1:]).transpose(np.argsort(self.order))


def _windows(eqn: JaxprEqn, x: Any) -> _Windows | None:
    p = eqn.params
    sizes, dilations = p["window_dimensions"], (*p.get("base_dilation", ()), *p.get("window_dilation", ()))
    axes = [i for i, k in enumerate(sizes) if k > 1]
    others = [i for i, k in enumerate(sizes) if k == 1]
    plain = sizes == p["window_strides"] and not np.any(p["padding"]) and {1, *dilations} == {1}
    if not plain or len(axes) != 2 or not others or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    *lead, channels = others
    return _Windows([*lead, *axes, channels], [sizes[i] for i in axes], [x.shape[i] for i in lead])


def _places(x: Any, window: Sequence[int]) -> list[Any]:
    """Return, for each place in a window of [B, H, W, C], the elements there."""
    height, width = (n // k * k for n, k in zip(x.shape[1:3], window, strict=True))
    steps = itertools.product(range(window[0]), range(window[1]))
    return [x[:, i : height : window[0], j : width : window[1]] for i, j in steps]
