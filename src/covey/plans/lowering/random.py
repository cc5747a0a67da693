"""Random numbers in the graph, bit for bit JAX's own: Threefry-2x32 on uint32.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), 20 rounds. A key is two words of uint32. How JAX
derives bits, children and folds from the block function is not repeated here: JAX traces it, and the result is lowered.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn
from jax.extend.random import threefry_prng_impl

from covey.plans.lowering.control import inline
from covey.plans.lowering.elementwise import arithmetic, compare, like, select
from covey.plans.lowering.graph import Graph, Value
from covey.plans.lowering.registry import lowers, out_dtype, out_shape, unsupported
from covey.plans.lowering.shapes import counting

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_ONE_BITS = 0x3F800000  # float32 1.0


def _bits(graph: Graph, op: str, a: Value, b: Value, **attributes: Any) -> Value:
    return graph.broadcast(op, [a, b], a.dtype, **attributes)


def _rotate(graph: Graph, x: Value, distance: int) -> Value:
    left = _bits(graph, "BitShift", x, like(graph, distance, x), direction="LEFT")
    return _bits(
        graph, "BitwiseOr", left, _bits(graph, "BitShift", x, like(graph, 32 - distance, x), direction="RIGHT")
    )


@lowers("threefry2x32", narrow=True)
def threefry(graph: Graph, eqn: JaxprEqn, k0: Value, k1: Value, x0: Value, x1: Value) -> list[Value]:
    """Encrypt the counters (x0, x1) under the key (k0, k1): five groups of four rounds, a key word after each."""
    parity = graph.const(np.array(_PARITY, np.uint32))
    keys = [k0, k1, _bits(graph, "BitwiseXor", parity, _bits(graph, "BitwiseXor", k0, k1))]
    x0, x1 = arithmetic(graph, "Add", x0, k0), arithmetic(graph, "Add", x1, k1)
    for group in range(5):
        for distance in _ROTATIONS[group % 2]:
            x0 = arithmetic(graph, "Add", x0, x1)
            x1 = _bits(graph, "BitwiseXor", _rotate(graph, x1, distance), x0)
        x0 = arithmetic(graph, "Add", x0, keys[(group + 1) % 3])
        tail = arithmetic(graph, "Add", keys[(group + 2) % 3], like(graph, group + 1, x1))
        x1 = arithmetic(graph, "Add", x1, tail)
    return [x0, x1]


@lowers("iota_2x32_shape", narrow=True)
def counters(graph: Graph, eqn: JaxprEqn) -> list[Value]:
    """Return the elements' numbers as 64-bit counters in two words; arrays here stay below 2^32 elements."""
    shape = out_shape(eqn)
    low = graph.reshape(counting(graph, math.prod(shape), np.uint32), shape)
    return [like(graph, 0, low), low]


def _traced(graph: Graph, eqn: JaxprEqn, fn: Callable[..., Any], *inputs: Value, batch: int = 0) -> Value:
    """Lower what JAX does for one key, mapped over ``batch`` leading axes of keys."""
    avals: list[Any] = [v.aval for v in eqn.invars]
    impl = eqn.params.get("impl", threefry_prng_impl)
    key_dtype = next((str(a.dtype) for a in avals if str(a.dtype).startswith("key<")), "key<fry>")
    if impl is not threefry_prng_impl or key_dtype != "key<fry>":
        raise unsupported(eqn, "a generator other than threefry", "use jax.random.key(seed), whose default is threefry")
    struct: Callable[..., Any] = jax.ShapeDtypeStruct  # untyped in JAX
    for _ in range(batch):
        fn = jax.vmap(fn)
    closed = jax.make_jaxpr(fn)(*(struct(v.shape, v.dtype) for v in inputs))
    (result,) = inline(graph, closed, inputs)
    return graph.full(result, out_shape(eqn))


@lowers("random_wrap", "random_unwrap", "random_clone", narrow=True)
def same_words(graph: Graph, eqn: JaxprEqn, key: Value) -> Value:
    """Do nothing: a key is its words."""
    return key


@lowers("random_bits")
def random_bits(graph: Graph, eqn: JaxprEqn, key: Value) -> Value:
    """Draw words of ``bit_width`` bits."""
    width, shape = int(eqn.params["bit_width"]), eqn.params["shape"]

    def draw(k: Any) -> Any:
        return threefry_prng_impl.random_bits(k, width, shape)

    return _traced(graph, eqn, draw, key, batch=len(key.shape) - 1)


@lowers("random_split")
def random_split(graph: Graph, eqn: JaxprEqn, key: Value) -> Value:
    """Derive independent keys."""
    shape = eqn.params["shape"]

    def derive(k: Any) -> Any:
        return threefry_prng_impl.split(k, shape)

    return _traced(graph, eqn, derive, key, batch=len(key.shape) - 1)


@lowers("random_fold_in")
def random_fold_in(graph: Graph, eqn: JaxprEqn, key: Value, data: Value) -> Value:
    """Mix a number into a key."""
    return _traced(graph, eqn, threefry_prng_impl.fold_in, key, data, batch=len(key.shape) - 1)


@lowers("random_seed")
def random_seed(graph: Graph, eqn: JaxprEqn, seed: Value) -> Value:
    """Make a key from an integer."""
    return _traced(graph, eqn, threefry_prng_impl.seed, seed, batch=len(seed.shape))


def _logic(on_bool: str, on_bits: str) -> Callable[..., Value]:
    def rule(graph: Graph, eqn: JaxprEqn, *inputs: Value) -> Value:
        dtype = inputs[0].dtype
        return graph.broadcast(on_bool if dtype == np.bool_ else on_bits, list(inputs), dtype)

    return rule


for _name, _on_bool, _on_bits in (
    ("and", "And", "BitwiseAnd"),
    ("or", "Or", "BitwiseOr"),
    ("xor", "Xor", "BitwiseXor"),
    ("not", "Not", "BitwiseNot"),
):
    lowers(_name, narrow=True)(_logic(_on_bool, _on_bits))


def _shift(graph: Graph, x: Value, distance: Value, direction: str) -> Value:
    """Shift without sign; by the word's size or more the result is 0, which the operator leaves undefined."""
    if x.dtype.itemsize != 4:
        raise _wrong_width(x)
    word, by = graph.cast(x, np.uint32), graph.cast(distance, np.uint32)
    known = by.scalar()
    if known is not None:
        if known >= 32:
            return like(graph, 0, x)
        return graph.cast(_bits(graph, "BitShift", word, by, direction=direction), x.dtype)
    inside = compare(graph, "Less", by, like(graph, 32, by))
    shifted = _bits(graph, "BitShift", word, select(graph, inside, by, like(graph, 0, by)), direction=direction)
    return graph.cast(select(graph, inside, shifted, like(graph, 0, word)), x.dtype)


def _wrong_width(x: Value) -> Exception:
    from covey.types.errors import PlanBuildError

    return PlanBuildError("lowering", expected="a shift of int32 or uint32", got=str(x.dtype), hint="convert first")


@lowers("shift_left", narrow=True)
def shift_left(graph: Graph, eqn: JaxprEqn, x: Value, distance: Value) -> Value:
    """Shift towards the high bits."""
    return _shift(graph, x, distance, "LEFT")


@lowers("shift_right_logical", narrow=True)
def shift_right_logical(graph: Graph, eqn: JaxprEqn, x: Value, distance: Value) -> Value:
    """Shift towards the low bits; zeros follow."""
    return _shift(graph, x, distance, "RIGHT")


@lowers("shift_right_arithmetic", narrow=True)
def shift_right_arithmetic(graph: Graph, eqn: JaxprEqn, x: Value, distance: Value) -> Value:
    """Shift towards the low bits; the sign follows: for negative numbers the complement of the complement's shift."""
    if x.dtype == np.uint32:
        return _shift(graph, x, distance, "RIGHT")
    negative = compare(graph, "Less", x, like(graph, 0, x))
    flipped = graph.broadcast("BitwiseNot", [x], x.dtype)
    shifted = _shift(graph, select(graph, negative, flipped, x), distance, "RIGHT")
    return select(graph, negative, graph.broadcast("BitwiseNot", [shifted], x.dtype), shifted)


@lowers("bitcast_convert_type", narrow=True)
def bitcast(graph: Graph, eqn: JaxprEqn, x: Value) -> Value:
    """Reinterpret bits: between int32 and uint32, and for the fractions that jax.random makes.

    Those set the exponent of 1.0 on 23 random bits m. The float with these bits is 1 + m 2^-23, exactly.
    """
    dtype = out_dtype(eqn)
    if dtype.kind in "iu" and x.dtype.kind in "iu" and dtype.itemsize == x.dtype.itemsize:
        return graph.cast(x, dtype)
    mantissa = _mantissa(graph, x)
    if dtype != np.float32 or mantissa is None:
        raise unsupported(eqn, f"{x.dtype} to {dtype}", "only what jax.random needs is available")
    number = graph.cast(graph.cast(mantissa, np.int32), np.float32)  # below 2^23: exact in both
    fraction = arithmetic(graph, "Mul", number, like(graph, 2.0**-23, number))
    return arithmetic(graph, "Add", fraction, like(graph, 1, number))


def _mantissa(graph: Graph, x: Value) -> Value | None:
    """Return m where ``x`` is known to be (m | the bits of 1.0) with m below 2^23."""
    node = graph.producer(x)
    if node is None or node.op != "BitwiseOr":
        return None
    for part, other in (node.inputs, node.inputs[::-1]):
        shift = graph.producer(part)
        if other.scalar() == _ONE_BITS and shift is not None and shift.op == "BitShift":
            by = shift.inputs[1].scalar()
            if shift.attributes["direction"] == "RIGHT" and by is not None and by >= 9:
                return part
    return None
