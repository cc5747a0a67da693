"""Weight gradients of small batches as sums of outer products, which XLA fuses with the optimizer's step.

The gradient of a dense layer's weights is ``G = X^T D`` with as many terms in each sum as the batch has examples. As a
matrix product it is written to memory and read again by the step ``W - lr G``, and that traffic, not the arithmetic, is
most of what a batch of ten costs: W and G together exceed a core's cache. Written as ``sum_k x_k d_k^T`` it is
elementwise, so that XLA makes one pass over W of both. This changes the order in which floats are added, nothing else.

The program is rewritten as a jaxpr, so that plans and models know nothing of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

__all__ = ["ONE", "with_outer_products"]

ONE = "one"
"""The number 1 among a step's constants, in a form that XLA cannot know."""

_MOST_TERMS = 16
_LEAST_VALUES = 1 << 12
_VECTOR = 16  # float32 in the widest registers: rows that begin at multiples of it are read without crossing lines

Step = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], Any]


def with_outer_products(step: Step) -> Step:
    """Return ``step(carry, constant, x)`` rewritten; ``constant`` must have :data:`ONE`."""

    def rewritten(carry: Mapping[str, Any], constant: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        closed, shape = jax.make_jaxpr(step, return_shape=True)(carry, constant, x)
        leaves = jax.tree.leaves((carry, constant, x))
        out = _evaluated(closed, leaves, constant[ONE])
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return rewritten


def _evaluated(closed: Any, args: Sequence[Any], one: Any) -> list[Any]:
    """Evaluate a jaxpr, and those of the functions that it calls, with the products replaced."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    values |= dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))
    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        if _is_small_batch(equation):
            out = [_outer_products(inputs[0], inputs[1], one)]
        elif equation.primitive.name in ("jit", "pjit"):
            out = _evaluated(equation.params["jaxpr"], inputs, one)
        else:
            bound = equation.primitive.get_bind_params(equation.params)
            functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # a pair before JAX 0.10
            made = equation.primitive.bind(*functions, *inputs, **parameters)
            out = made if equation.primitive.multiple_results else [made]
        values |= dict(zip(equation.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _is_small_batch(equation: Any) -> bool:
    """Return whether an equation is ``a^T b`` of two float32 matrices with few rows and a large result."""
    if equation.primitive.name != "dot_general":
        return False
    a, b = (v.aval for v in equation.invars)
    (out,) = (v.aval for v in equation.outvars)
    return bool(
        a.ndim == b.ndim == 2
        and equation.params["dimension_numbers"] == (((0,), (0,)), ((), ()))
        and a.shape[0] <= _MOST_TERMS
        and out.size >= _LEAST_VALUES
        and a.dtype == b.dtype == out.dtype == jnp.float32
    )


def _outer_products(a: Any, b: Any, one: Any) -> Any:
    """Return ``a^T b`` as a sum over the rows of both."""
    a, b = _computed_once(a, one), _computed_once(b, one)
    products = [a[k][:, None] * b[k][None, :] for k in range(len(a))]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


def _computed_once(rows: Any, one: Any) -> Any:
    """Return ``rows`` so that XLA computes them before the sum, and not anew at every place where they are read.

    It does so with the results of divisions, which are dear.
    """
    width = rows.shape[1]
    return (jnp.pad(rows, ((0, 0), (0, -width % _VECTOR))) / one)[:, :width]
