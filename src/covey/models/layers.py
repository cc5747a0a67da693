"""Layers as functions on dict trees, in the forms that lower well and run fast on both engines."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["conv2d", "conv2d_init", "dense", "dense_init", "embedding", "embedding_init", "max_pool_2x2"]

Tree = dict[str, Any]
Key = Any


def dense_init(key: Key, num_inputs: int, num_outputs: int) -> Tree:
    """Return ``w`` [inputs, outputs], He normal, and ``b`` of zeros."""
    scale = (2.0 / num_inputs) ** 0.5
    return {"w": scale * jax.random.normal(key, (num_inputs, num_outputs)), "b": jnp.zeros(num_outputs)}


def dense(params: Tree, x: Any) -> Any:
    """Return ``x @ w + b``; x is [..., inputs]."""
    return x @ params["w"] + params["b"]


def embedding_init(key: Key, num_symbols: int, size: int) -> Tree:
    """Return a ``table`` [symbols, size] of small normals."""
    return {"table": 0.1 * jax.random.normal(key, (num_symbols, size))}


def embedding(params: Tree, ids: Any) -> Any:
    """Return the rows for ``ids``, int32 [...] within the table."""
    # "promise_in_bounds": the device checks ids against the schema, and clipping would cost a pass over them.
    return params["table"].at[ids].get(mode="promise_in_bounds")


def conv2d_init(key: Key, kernel: Sequence[int], num_inputs: int, num_outputs: int) -> Tree:
    """Return ``w`` [outputs, inputs, height, width], He normal, and ``b`` of zeros."""
    height, width = kernel
    scale = (2.0 / (height * width * num_inputs)) ** 0.5
    return {"w": scale * jax.random.normal(key, (num_outputs, num_inputs, height, width)), "b": jnp.zeros(num_outputs)}


def conv2d(params: Tree, x: Any) -> Any:
    """Convolve x [B, channels, height, width] at stride 1, zero-padded to the same height and width."""
    y = jax.lax.conv_general_dilated(x, params["w"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return y + params["b"][:, None, None]


def max_pool_2x2(x: Any) -> Any:
    """Return the maxima of 2 x 2 windows of x [B, channels, height, width], height and width even."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
