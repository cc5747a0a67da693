"""dot_general: matrix products in every arrangement of axes."""

import math
from collections.abc import Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from covey.plans.lowering.graph import Graph, Value
from covey.plans.lowering.registry import lowers, out_dtype, out_shape, unsupported


@lowers("dot_general")
def dot_general(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    """Contract axes of two tensors; without batch axes as one Gemm, whose flags spare the transpositions."""
    (contract_a, contract_b), (batch_a, _) = eqn.params["dimension_numbers"]
    dtype = out_dtype(eqn)
    if dtype == np.bool_:
        raise unsupported(eqn, "on bool", "convert to float32 or int32 first")
    wide = np.dtype(np.int32) if dtype.itemsize == 1 else dtype  # MatMul has no int8; modulo 2^8 the result is the same
    a, b = graph.cast(a, wide), graph.cast(b, wide)
    if batch_a or dtype != np.float32:
        return graph.cast(_batched(graph, eqn, a, b), dtype)
    plain = len(b.shape) == 2 and tuple(contract_b) == (0,) and tuple(contract_a) == (len(a.shape) - 1,)
    if plain and len(a.shape) > 2:
        return graph.op("MatMul", [a, b], out_shape(eqn), dtype)
    left, transpose_a = _matrix(graph, a, contract_a)
    right, transpose_b = _matrix(graph, b, contract_b)
    rows, columns = left.shape[1 if transpose_a else 0], right.shape[1 if transpose_b else 0]
    product = graph.op(
        "Gemm", [left, right], (rows, columns), dtype, transA=int(transpose_a), transB=int(not transpose_b)
    )
    return graph.reshape(product, out_shape(eqn))


def _matrix(graph: Graph, x: Value, contract: Sequence[int]) -> tuple[Value, bool]:
    """Return ``x`` as a matrix and whether its rows are the contracted side."""
    contract = [int(d) for d in contract]
    kept = [d for d in range(len(x.shape)) if d not in contract]
    k, n = math.prod(x.shape[d] for d in contract), math.prod(x.shape[d] for d in kept)
    if contract == list(range(len(contract))):
        return _untransposed(graph, graph.reshape(x, (k, n)), True)
    if contract != list(range(len(kept), len(x.shape))):
        x = graph.transpose(x, kept + contract)
    return _untransposed(graph, graph.reshape(x, (n, k)), False)


def _untransposed(graph: Graph, x: Value, contracted_first: bool) -> tuple[Value, bool]:
    node = graph.producer(x)
    if node is not None and node.op == "Transpose" and node.attributes["perm"] == (1, 0):
        return node.inputs[0], not contracted_first
    return x, contracted_first


def _batched(graph: Graph, eqn: JaxprEqn, a: Value, b: Value) -> Value:
    (contract_a, contract_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    kept_a = [d for d in range(len(a.shape)) if d not in (*contract_a, *batch_a)]
    kept_b = [d for d in range(len(b.shape)) if d not in (*contract_b, *batch_b)]
    batch = [a.shape[d] for d in batch_a]
    k = math.prod(a.shape[d] for d in contract_a)
    n_a, n_b = math.prod(a.shape[d] for d in kept_a), math.prod(b.shape[d] for d in kept_b)
    left = graph.reshape(graph.transpose(a, [*batch_a, *kept_a, *contract_a]), (*batch, n_a, k))
    right = graph.reshape(graph.transpose(b, [*batch_b, *contract_b, *kept_b]), (*batch, k, n_b))
    return graph.reshape(graph.op("MatMul", [left, right], (*batch, n_a, n_b), a.dtype), out_shape(eqn))
