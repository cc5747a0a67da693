"""Loops, branches and calls."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.elementwise import compare
from covey.plans.lowering.graph import Graph, Shape, Value
from covey.plans.lowering.registry import (
    lower_jaxpr,
    lowers,
    number_type,
    out_dtype,
    out_shape,
    tensor_shape,
    unsupported,
)

_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@lowers(
    "jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
    narrow=True,
)  # fmt: skip
def call(graph: Graph, eqn: JaxprEqn, *inputs: Value) -> list[Value]:
    """Lower the called program in place. Custom derivatives have been used by then."""
    called = next((eqn.params[k] for k in _CALLED if k in eqn.params), None)
    if called is None:
        raise unsupported(eqn)
    return inline(graph, called, inputs)


def inline(graph: Graph, called: Any, inputs: Sequence[Value]) -> list[Value]:
    """Lower a jaxpr, open or closed, in place."""
    if hasattr(called, "jaxpr"):
        return lower_jaxpr(graph, called.jaxpr, called.consts, inputs)
    return lower_jaxpr(graph, called, [], inputs)


@lowers("scan", narrow=True)
def scan(graph: Graph, eqn: JaxprEqn, *inputs: Value) -> Sequence[Value]:
    """Loop a known number of times as a Scan, whose body reads the loop's constants from outside."""
    p = eqn.params
    num_consts, num_carry, length = int(p["num_consts"]), int(p["num_carry"]), int(p["length"])
    full = [graph.full(v, tensor_shape(a.aval)) for v, a in zip(inputs, eqn.invars, strict=True)]
    consts, carry, xs = inputs[:num_consts], full[num_consts : num_consts + num_carry], full[num_consts + num_carry :]
    if length == 0:
        empty = [graph.full(graph.const(np.zeros((), out_dtype(eqn, i))), out_shape(eqn, i))
                 for i in range(num_carry, len(eqn.outvars))]  # fmt: skip
        return [*carry, *empty]
    closed = p["jaxpr"]
    in_avals = [v.aval for v in closed.jaxpr.invars[num_consts:]]

    def step(body: Graph, arguments: Sequence[Value]) -> list[Value]:
        return inline(body, closed, [*consts, *arguments])

    return scan_node(
        graph,
        carry,
        xs or [graph.const(np.arange(length, dtype=np.int32))],  # Scan needs something to walk along
        [(tensor_shape(a), number_type(a)) for a in in_avals],
        [(out_shape(eqn, i), out_dtype(eqn, i)) for i in range(len(eqn.outvars))],
        step,
        reverse=bool(p["reverse"]),
    )


def scan_node(
    graph: Graph,
    carry: Sequence[Value],
    xs: Sequence[Value],
    arguments: Sequence[tuple[Shape, Any]],
    outputs: Sequence[tuple[Shape, Any]],
    step: Callable[[Graph, Sequence[Value]], list[Value]],
    *,
    reverse: bool = False,
) -> tuple[Value, ...]:
    """Add a Scan.

    Args:
        graph: where it goes.
        carry: start values of what the loop carries.
        xs: what it walks along, on axis 0.
        arguments: shape and dtype of the step's arguments, first the carried ones. One argument fewer than there are
            inputs means that the last of ``xs`` only counts.
        outputs: shape and dtype of the results: the carried ones, then the stacked ones.
        step: lowers one step into the body it is given.
        reverse: walk from the end.
    """
    body = Graph(graph, hoists=True)
    values = [body.fresh_input(s, d) for s, d in arguments]
    counters = [body.fresh_input((), xs[-1].dtype)] if len(values) < len(carry) + len(xs) else []
    results = step(body, values)
    inner = [s if i < len(carry) else s[1:] for i, (s, _) in enumerate(outputs)]
    results = body.outputs([body.full(v, s) for v, s in zip(results, inner, strict=True)])
    attributes: dict[str, Any] = {"num_scan_inputs": len(xs)}
    if reverse:
        attributes["scan_input_directions"] = (1,) * len(xs)
        if len(outputs) > len(carry):
            attributes["scan_output_directions"] = (1,) * (len(outputs) - len(carry))
    proto = body.body(graph.model.fresh("body"), [*values, *counters], results)
    return graph.add_body_node("Scan", [*carry, *xs], outputs, {"body": body}, {"body": proto}, **attributes)


@lowers("cond", narrow=True)
def cond(graph: Graph, eqn: JaxprEqn, index: Value, *operands: Value) -> Sequence[Value]:
    """Branch as an If; only the branch that is taken runs. More than two branches nest."""
    branches = eqn.params["branches"]
    known = index.scalar()
    if known is not None:
        return inline(graph, branches[min(max(int(known), 0), len(branches) - 1)], operands)
    return _branch(graph, eqn, index, 0, operands)


@lowers("platform_index")
def platform_index(graph: Graph, eqn: JaxprEqn) -> Value:
    """Choose the branch that JAX takes on a processor, which is what a graph is compared with."""
    platforms = eqn.params["platforms"]
    named = [i for i, names in enumerate(platforms) if names is not None and "cpu" in names]
    default = [i for i, names in enumerate(platforms) if names is None]
    if not named + default:
        raise unsupported(eqn, "no branch for the processor", "give lax.platform_dependent a default")
    return graph.const(np.array((named + default)[0], np.int32))


@lowers("empty2")
def empty(graph: Graph, eqn: JaxprEqn) -> Value:
    """Return zeros for what a branch that was not taken leaves behind."""
    return graph.const(np.zeros(out_shape(eqn), out_dtype(eqn)))


def _branch(graph: Graph, eqn: JaxprEqn, index: Value, first: int, operands: Sequence[Value]) -> Sequence[Value]:
    branches = eqn.params["branches"]
    if first == len(branches) - 1:
        return inline(graph, branches[first], operands)
    outputs = [(out_shape(eqn, i), out_dtype(eqn, i)) for i in range(len(eqn.outvars))]
    bodies, protos = {}, {}
    for key, follow in (("then_branch", True), ("else_branch", False)):
        body = Graph(graph)
        values = _branch(body, eqn, index, first + 1, operands) if follow else inline(body, branches[first], operands)
        values = body.outputs([body.full(v, s) for v, (s, _) in zip(values, outputs, strict=True)])
        bodies[key], protos[key] = body, body.body(graph.model.fresh("branch"), [], values)
    predicate = _beyond(graph, index, first)
    return graph.add_body_node("If", [predicate], outputs, bodies, protos)


def _beyond(graph: Graph, index: Value, first: int) -> Value:
    """Say whether the index is above ``first``; a converted bool is used as it is."""
    node = graph.producer(index)
    if first == 0 and node is not None and node.op == "Cast" and node.inputs[0].dtype == np.bool_:
        return node.inputs[0]
    return compare(graph, "Greater", index, graph.const(np.array(first, index.dtype)))
