"""One small function for each JAX primitive, and the walk over a jaxpr that calls them."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Var

from covey.plans.lowering.graph import Graph, Shape, Value
from covey.types.errors import PlanBuildError, UnsupportedPrimitiveError

__all__ = ["Rule", "lower_jaxpr", "lowers", "number_type", "out_dtype", "out_shape", "source_line", "tensor_shape"]

Rule = Callable[..., Value | Sequence[Value]]
"""``(graph, eqn, *inputs) -> value``, or a sequence of values where the primitive has several outputs."""

R = TypeVar("R", bound=Rule)

_RULES: dict[str, tuple[Rule, bool]] = {}

_HINTS: Mapping[str, str] = {
    "while": "a plan's work must be bounded: use lax.scan, or lax.fori_loop with bounds that are Python numbers",
    "fft": "use a matrix product with a constant matrix of cosines and sines",
    "erf_inv": "draw noise outside the graph and pass it in as part of the batch",
    "lgamma": "pass the value in as part of the batch",
    "pure_callback": "a plan is data and cannot call back into Python",
    "io_callback": "a plan is data and cannot call back into Python",
    "debug_callback": "remove jax.debug.print from the loss",
    "debug_print": "remove jax.debug.print from the loss",
    "cholesky": "linear algebra beyond products is not available on devices",
    "triangular_solve": "linear algebra beyond products is not available on devices",
}


def lowers(*primitives: str, narrow: bool = False) -> Callable[[R], R]:
    """Register the decorated rule for the named primitives.

    Args:
        primitives: names as a jaxpr prints them.
        narrow: the rule takes lazily broadcast inputs as they are; otherwise each input has exactly JAX's shape.
    """

    def register(rule: R) -> R:
        for name in primitives:
            assert name not in _RULES, f"two rules for {name}"
            _RULES[name] = (rule, narrow)
        return rule

    return register


def tensor_shape(aval: Any) -> Shape:
    """Return the shape that a JAX value has in a graph; a typed PRNG key is its two uint32 words."""
    return (*map(int, aval.shape), 2) if _is_key(aval) else tuple(map(int, aval.shape))


def number_type(aval: Any) -> np.dtype[Any]:
    """Return the dtype that a JAX value has in a graph."""
    return np.dtype(np.uint32) if _is_key(aval) else np.dtype(aval.dtype)


def out_shape(eqn: JaxprEqn, index: int = 0) -> Shape:
    """Return the shape of an equation's output."""
    return tensor_shape(eqn.outvars[index].aval)


def out_dtype(eqn: JaxprEqn, index: int = 0) -> np.dtype[Any]:
    """Return the dtype of an equation's output."""
    return number_type(eqn.outvars[index].aval)


def source_line(eqn: JaxprEqn) -> str:
    """Return ``file.py:line`` of the author's code behind an equation; empty inside library functions."""
    text = source_info_util.summarize(eqn.source_info)  # "path/file.py:12:4 (function)"
    place = text.split(" ")[0]
    parts = place.split(":")
    return ":".join(parts[:2]) if len(parts) > 2 else place


def unsupported(eqn: JaxprEqn, detail: str = "", hint: str = "") -> UnsupportedPrimitiveError:
    """Return the error for an equation that cannot be lowered; names the primitive and the author's line."""
    name = eqn.primitive.name
    if not hint:
        near = difflib.get_close_matches(name, _RULES, n=3)
        hint = _HINTS.get(name) or (
            f"near it are {', '.join(near)}" if near else "rewrite it with other jax.numpy calls"
        )
    return UnsupportedPrimitiveError(
        source_line(eqn),
        expected="a primitive that lowers to ONNX",
        got=f"{name}{f' ({detail})' if detail else ''}",
        hint=hint,
    )


def lower_jaxpr(graph: Graph, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value]) -> list[Value]:
    """Lower the equations of ``jaxpr`` into ``graph`` and return its outputs, which may be lazily broadcast.

    Args:
        graph: where the nodes go.
        jaxpr: an open jaxpr.
        consts: concrete arrays, or values, for its ``constvars``.
        args: values for its ``invars``.

    Raises:
        UnsupportedPrimitiveError: a primitive without a rule, or a use of one that its rule does not cover.
    """
    env: dict[Any, Value] = {}

    def read(atom: Any) -> Value:
        if isinstance(atom, Literal):
            return graph.const(np.asarray(atom.val, dtype=number_type(atom.aval)))
        return env[atom]

    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = const if isinstance(const, Value) else graph.const(np.asarray(const))
    for var, arg in zip(jaxpr.invars, args, strict=True):
        env[var] = arg
    for eqn in jaxpr.eqns:
        results = _lower_equation(graph, eqn, [read(a) for a in eqn.invars])
        for out, result in zip(eqn.outvars, results, strict=True):
            if isinstance(out, Var):
                env[out] = result
    return [read(a) for a in jaxpr.outvars]


def _lower_equation(graph: Graph, eqn: JaxprEqn, inputs: list[Value]) -> Sequence[Value]:
    entry = _RULES.get(eqn.primitive.name)
    if entry is None:
        raise unsupported(eqn)
    rule, narrow = entry
    if not narrow:
        inputs = [graph.full(v, tensor_shape(a.aval)) for v, a in zip(inputs, eqn.invars, strict=True)]
    try:
        result = rule(graph, eqn, *inputs)
    except PlanBuildError as e:
        # Equations inside library functions carry no line of the author's: the innermost call that has one names it.
        place = source_line(eqn)
        if e.where not in ("", "lowering") or not place:
            raise
        raise type(e)(place, expected=e.expected, got=e.got, hint=e.hint) from e
    return [result] if isinstance(result, Value) else result


def _is_key(aval: Any) -> bool:
    return str(aval.dtype).startswith("key<")
