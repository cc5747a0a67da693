"""Weight gradients of small batches as sums of outer products, which XLA fuses with the optimizer's step.

A rule for :mod:`covey.simulation.rewriting`. The gradient of a dense layer's weights is ``G = X^T D`` with as many
terms in each sum as the batch has examples. As a matrix product it is written to memory and read again by the step
``W - lr G``, and that traffic, not the arithmetic, is most of what a batch of ten costs: W and G together exceed a
core's cache. Written as ``sum_k x_k d_k^T`` it is elementwise, so that XLA makes one pass over W of both. This changes
the order in which floats are added, nothing else.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

__all__ = ["small_batch_product"]

_MOST_TERMS = 16
_LEAST_VALUES = 1 << 12
_VECTOR = 16  # float32 in the widest registers: rows that begin at multiples of it are read without crossing lines


def small_batch_product(eqn: JaxprEqn, operands: Sequence[Any], makers: Sequence[Any]) -> Any | None:
    """Return what a ``dot_general`` equation computes; None: it is not ``a^T b`` with few rows and a large result."""
    a, b = operands
    fits = (
        a.ndim == b.ndim == 2
        and eqn.params["dimension_numbers"] == (((0,), (0,)), ((), ()))
        and 1 <= a.shape[0] <= _MOST_TERMS
        and a.shape[1] * b.shape[1] >= _LEAST_VALUES
        and a.dtype == b.dtype == jnp.float32
        and eqn.params["preferred_element_type"] in (None, jnp.float32)
    )
    if not fits:
        return None
    a, b = _computed_once(a), _computed_once(b)
    total, *products = [a[k][:, None] * b[k][None, :] for k in range(len(a))]
    return sum(products, total)


def _computed_once(rows: Any) -> Any:
    """Return ``rows`` so that XLA computes them before the sum, and not anew at every place where they are read.

    It does so with the results of divisions, which are dear. It is by a 1 that it cannot know to be one: zero times a
    number is not zero where that is an infinity, and those stay non-finite.
    """
    one = rows[0, 0] * 0 + 1
    width = rows.shape[1]
    return (jnp.pad(rows, ((0, 0), (0, -width % _VECTOR))) / one)[:, :width]
