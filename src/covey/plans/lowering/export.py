"""From functions to models: a one-shot graph, and a loop over a number of steps that is known only at run time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.interpreters import partial_eval
from onnx import helper

# Importing a module of rules registers them.
from covey.plans.lowering import contractions, convolution, indexing, pooling, random, reductions  # noqa: F401
from covey.plans.lowering.control import scan_node
from covey.plans.lowering.graph import Graph, Value, value_info
from covey.plans.lowering.registry import lower_jaxpr
from covey.plans.ops import MAX_IR_VERSION, OPSET
from covey.types.errors import PlanBuildError

__all__ = ["STEPS", "lower", "lower_scan"]

Arrays = Mapping[str, Any]
Struct = jax.ShapeDtypeStruct
_new_struct: Callable[..., Struct] = jax.ShapeDtypeStruct  # its constructor is untyped

STEPS = "S"
"""Name of the dimension that counts the steps of a chunk."""


def lower(fn: Callable[[dict[str, Any]], Arrays], inputs: Mapping[str, Struct], *, name: str) -> bytes:
    """Lower a function to a model that computes it once.

    Args:
        fn: maps a flat dict of named arrays to a flat dict of named arrays; traceable by JAX.
        inputs: shape and dtype of each input. All become inputs of the model, in sorted order, also unused ones.
        name: the graph's name.

    Returns:
        A serialized ONNX model; the same for the same function and inputs.

    Raises:
        UnsupportedPrimitiveError: names the primitive and the author's line.
        PlanBuildError: a bad name, dtype or result.
    """
    graph = Graph()
    names = _checked_names(inputs)
    closed, out_names = _trace(lambda *arrays: fn(dict(zip(names, arrays, strict=True))), [inputs[n] for n in names])
    _no_clash(names, out_names)
    values = [graph.input(n, inputs[n].shape, inputs[n].dtype) for n in names]
    results = lower_jaxpr(graph, closed.jaxpr, closed.consts, values)
    avals = [v.aval for v in closed.jaxpr.outvars]
    results = [graph.full(v, a.shape) for v, a in zip(results, avals, strict=True)]
    infos = [value_info(n, inputs[n].shape, inputs[n].dtype) for n in names]
    return _serialize(graph, name, infos, results, out_names, [tuple(a.shape) for a in avals])


def lower_scan(
    step: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Arrays],
    *,
    carry: Mapping[str, Struct | np.ndarray[Any, Any]],
    shared: Mapping[str, Struct],
    xs: Mapping[str, Struct],
    out_names: Mapping[str, str],
    name: str,
) -> bytes:
    """Lower a step to a model that takes S steps, S >= 1 being known only at run time.

    Args:
        step: ``(carry, shared, x) -> carry``, each a flat dict of named arrays; traceable by JAX.
        carry: what a step hands to the next. Shape and dtype make an input of that name; a concrete array is a start
            value that the model holds, and no input.
        shared: inputs that every step reads. What depends on them alone is computed once, not at each step.
        xs: shape and dtype of what *one* step reads; the model's input has a leading dimension S.
        out_names: for each carried name that the model gives out, the output's name; ONNX wants it to differ from all
            inputs. A carried name that is missing here stays inside.
        name: the graph's name.

    Returns:
        A serialized ONNX model; the same for the same step and inputs.

    Raises:
        UnsupportedPrimitiveError: names the primitive and the author's line.
        PlanBuildError: a bad name or dtype, no ``xs``, or a step that changes the shape or dtype of what it carries.
    """
    graph = Graph()
    kept, common, walked = sorted(carry), sorted(shared), sorted(xs)
    arguments = [_struct(carry[n]) for n in kept] + [shared[n] for n in common] + [xs[n] for n in walked]
    closed, given = _trace(_flat_step(step, kept, common, walked), arguments)
    _check_step(name, kept, given, arguments, [v.aval for v in closed.jaxpr.outvars], walked)
    entering = [n for n in kept if isinstance(carry[n], Struct)]
    _checked_names([*entering, *common, *walked])
    _no_clash([*entering, *common, *walked], list(out_names.values()))
    start = [_start(graph, n, carry[n]) for n in kept]
    outer = [graph.input(n, shared[n].shape, shared[n].dtype) for n in common]
    stacked = [graph.input(n, (1, *xs[n].shape), xs[n].dtype) for n in walked]

    def lower_step(body: Graph, values: Sequence[Value]) -> list[Value]:
        inner = [*values[: len(kept)], *outer, *values[len(kept) :]]
        return lower_jaxpr(body, closed.jaxpr, closed.consts, inner)

    state = [(tuple(s.shape), s.dtype) for s in arguments[: len(kept)]]
    slices = [(tuple(xs[n].shape), xs[n].dtype) for n in walked]
    results = scan_node(graph, start, stacked, [*state, *slices], state, lower_step)
    infos = [value_info(n, _struct(carry[n]).shape, _struct(carry[n]).dtype) for n in entering]
    infos += [value_info(n, shared[n].shape, shared[n].dtype) for n in common]
    infos += [value_info(n, (STEPS, *xs[n].shape), xs[n].dtype) for n in walked]
    shown = [i for i, n in enumerate(kept) if n in out_names]
    return _serialize(
        graph,
        name,
        infos,
        [results[i] for i in shown],
        [out_names[kept[i]] for i in shown],
        [state[i][0] for i in shown],
    )


def _struct(entry: Struct | np.ndarray[Any, Any]) -> Struct:
    return entry if isinstance(entry, Struct) else _new_struct(np.shape(entry), np.asarray(entry).dtype)


def _start(graph: Graph, name: str, entry: Struct | np.ndarray[Any, Any]) -> Value:
    if isinstance(entry, Struct):
        return graph.input(name, entry.shape, entry.dtype)
    array = np.asarray(entry)
    if array.size and (array == array.reshape(-1)[0]).all():  # zeros, mostly: store one number
        return graph.full(graph.const(array.reshape(-1)[0]), array.shape)
    return graph.const(array)


def _flat_step(
    step: Callable[..., Arrays], kept: list[str], common: list[str], walked: list[str]
) -> Callable[..., Arrays]:
    def flat(*arrays: Any) -> Arrays:
        a, b = len(kept), len(kept) + len(common)
        return step(
            dict(zip(kept, arrays[:a], strict=True)),
            dict(zip(common, arrays[a:b], strict=True)),
            dict(zip(walked, arrays[b:], strict=True)),
        )

    return flat


def _trace(fn: Callable[..., Arrays], arguments: Sequence[Struct]) -> tuple[Any, list[str]]:
    """Trace ``fn`` and drop what its results do not need; return the program and the results' names."""
    closed, shapes_out = jax.make_jaxpr(fn, return_shape=True)(*arguments)
    if not isinstance(shapes_out, Mapping) or not all(isinstance(v, Struct) for v in shapes_out.values()):
        raise PlanBuildError(
            "lowering", expected="a flat dict of named arrays", got=str(jax.tree.structure(shapes_out))
        )
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    with_jaxpr: Any = closed
    return with_jaxpr.replace(jaxpr=jaxpr), sorted(shapes_out)


def _check_step(
    name: str, kept: list[str], given: list[str], arguments: Sequence[Struct], avals: Sequence[Any], walked: list[str]
) -> None:
    if not walked:
        raise PlanBuildError(name, expected="something that differs from step to step", got="no xs")
    if given != kept:
        raise PlanBuildError(name, expected=f"a step that returns {', '.join(kept)}", got=", ".join(given))
    for key, before, after in zip(kept, arguments, avals, strict=False):
        if tuple(before.shape) != tuple(after.shape) or before.dtype != after.dtype:
            raise PlanBuildError(
                f"{name}: {key}",
                expected=f"{before.dtype}{list(before.shape)} after a step as before it",
                got=f"{after.dtype}{list(after.shape)}",
                hint="a step must keep the shape and dtype of what it carries",
            )


def _checked_names(names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    result = sorted(names)
    bad = [n for n in result if not n or n.startswith("_")]
    if bad or len(set(result)) != len(result):
        raise PlanBuildError(
            "lowering", expected="distinct names that do not start with _", got=", ".join(map(repr, result))
        )
    return result


def _no_clash(inputs: Sequence[str], outputs: Sequence[str]) -> None:
    _checked_names([*outputs])
    if both := sorted(set(inputs) & set(outputs)):
        raise PlanBuildError("lowering", expected="outputs named differently from inputs", got=", ".join(both))


def _serialize(
    graph: Graph, name: str, inputs: list[onnx.ValueInfoProto], results: Sequence[Value], names: Sequence[str],
    shapes_out: Sequence[Sequence[int]],
) -> bytes:  # fmt: skip
    graph.rename_outputs(results, names)
    outputs = [value_info(n, s, v.dtype) for n, s, v in zip(names, shapes_out, results, strict=True)]
    graph.prune(names)
    proto = helper.make_graph(
        [n.proto() for n in graph.nodes], name, inputs, outputs, sorted(graph.initializers(), key=lambda t: t.name)
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(proto, opset_imports=[opset], ir_version=MAX_IR_VERSION, producer_name="covey")
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
