"""Better graphs for XLA on a CPU: a function's equations, some replaced by equal ones that run faster.

Models stay as their authors wrote them, and gradients as JAX derives them; the plan's graphs, which devices run, are
lowered from the same functions and are not touched.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from covey.simulation.convolution import Maker, convolved
from covey.simulation.outer_products import small_batch_product
from covey.simulation.pooling import max_pooled, max_unpooled, unpooled_sum

__all__ = ["has_primitive", "rewritten"]

T = TypeVar("T")

_RULES: Mapping[str, Callable[..., Any | None]] = {
    "conv_general_dilated": convolved,
    "dot_general": small_batch_product,
    "reduce_window_max": max_pooled,
    "select_and_scatter_add": max_unpooled,
    "reduce_sum": unpooled_sum,
}
"""``(equation, operands, makers of the operands) -> result``; None: leave the equation as it is."""


def rewritten(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that computes what ``function`` does, up to rounding, with its equations rewritten.

    Equations within calls, loops and branches are found too. The function has to be differentiated before, not after:
    an equation that is kept may hold a derivative of its own, which is not rewritten.
    """

    def better(*args: Any) -> T:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        results = _evaluated(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        out: T = jax.tree.unflatten(jax.tree.structure(shapes), results)
        return out

    return better


def has_primitive(jaxpr: Jaxpr, *names: str) -> bool:
    """Return whether a jaxpr, or any within it, uses one of the named primitives."""
    return any(
        equation.primitive.name in names
        or any(has_primitive(inner, *names) for inner in jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    made: dict[Any, Maker] = {}
    for equation in jaxpr.eqns:
        operands = [read(a) for a in equation.invars]
        rule = _RULES.get(equation.primitive.name)
        result = None
        if rule is not None:
            makers = [None if isinstance(a, Literal) else made.get(a) for a in equation.invars]
            result = rule(equation, operands, makers)
        results = _kept(jaxpr, equation, operands) if result is None else [result]
        values |= zip(equation.outvars, results, strict=True)
        made |= dict.fromkeys(equation.outvars, (equation, operands))
    return [read(a) for a in jaxpr.outvars]


def _kept(jaxpr: Jaxpr, equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    """Evaluate an equation as it is, but for the jaxprs within it: JAX's own evaluation of it alone."""
    equation = equation.replace(params={k: _inner(v) for k, v in equation.params.items()})
    given = {a: v for a, v in zip(equation.invars, operands, strict=True) if not isinstance(a, Literal)}
    replace: Any = jaxpr.replace  # untyped
    alone = replace(constvars=list(given), invars=[], outvars=equation.outvars, eqns=[equation])
    results: Sequence[Any] = jax.core.eval_jaxpr(alone, list(given.values()))
    return results


def _inner(value: Any) -> Any:
    """Rewrite a parameter of an equation: the jaxprs in it."""
    if isinstance(value, ClosedJaxpr) and has_primitive(value.jaxpr, *_RULES):
        arguments = [v.aval for v in value.jaxpr.invars]
        return jax.make_jaxpr(lambda *args: _evaluated(value.jaxpr, value.consts, args))(*arguments)
    if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr) for v in value):
        return tuple(map(_inner, value))
    return value
