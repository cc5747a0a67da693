"""A builder of ONNX graphs: values with shapes and known constants, and the few rewrites that make graphs fast.

Three ideas keep the graphs small:

* **Broadcasts are lazy.** A value may be *narrower* than what JAX thinks it is: any shape that NumPy broadcasting takes
  to JAX's. Element-wise rules combine narrow values; :meth:`Graph.full` widens one where an operator needs it.
* **Nothing is computed twice.** The same operator on the same inputs gives the same value, in the graph at hand or in
  one that encloses it, and constants are shared.
* **Nothing is computed more often than needed.** A node in the body of a Scan that reads only outer values is placed
  outside. The body of an If keeps its nodes: they must not run when the branch is not taken.

Names are a counter, so the same program gives the same bytes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from covey.plans.ops import ALLOWED_OPS
from covey.types.errors import PlanBuildError

__all__ = ["Attribute", "Graph", "Node", "Shape", "Value", "element_type", "value_info"]

Shape = tuple[int, ...]
Attribute = int | float | str | tuple[int, ...] | GraphProto | TensorProto

MAX_FOLDED_ELEMENTS = 1024
"""A larger constant expression stays an expression: onnxruntime folds it at load, and the file stays small."""

_ELEMENT_TYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint32": TensorProto.UINT32,
    "bool": TensorProto.BOOL,
}


def element_type(dtype: Any) -> int:
    """Return ONNX's number for a dtype.

    Raises:
        PlanBuildError: a dtype that plans do not hold, such as float16.
    """
    name = str(np.dtype(dtype))
    if name not in _ELEMENT_TYPES:
        raise PlanBuildError(
            "lowering", expected=f"one of the dtypes {', '.join(_ELEMENT_TYPES)}", got=name, hint="use float32 or int32"
        )
    return _ELEMENT_TYPES[name]


def value_info(name: str, shape: Sequence[int | str], dtype: Any) -> ValueInfoProto:
    """Declare an input or output. A string in ``shape`` is a dimension that is only known at run time."""
    return helper.make_tensor_value_info(name, element_type(dtype), list(shape))


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor in the graph.

    Attributes:
        name: its name, unique in the model.
        shape: what the operator gives; may be narrower than JAX's shape (see the module's docstring).
        dtype: NumPy's dtype.
        graph: the graph that computes it; None for a constant, which every graph may read.
        known: the constant's content, or None.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    graph: "Graph | None" = None
    known: np.ndarray[Any, Any] | None = None

    def scalar(self) -> float | None:
        """Return the number that every element is known to be, or None."""
        return self.known.reshape(-1)[0].item() if self.known is not None and self.known.size == 1 else None


@dataclass(slots=True, eq=False)
class Node:
    """An operator before it is written out: the rewrites look at these."""

    op: str
    inputs: list[Value]
    outputs: list[str]
    attributes: dict[str, Attribute]
    bodies: list["Graph"] = field(default_factory=list)

    def proto(self) -> NodeProto:
        """Write the node; optional inputs that are absent have the empty name."""
        node = helper.make_node(self.op, [v.name for v in self.inputs], self.outputs, name=self.outputs[0])
        for key in sorted(self.attributes):
            node.attribute.append(helper.make_attribute(key, self.attributes[key]))
        return node


ABSENT = Value("", (), np.dtype(np.float32))
"""Stands for an optional input that is not given."""


class _Model:
    """What all graphs of one model share: the counter behind the names, and the constants."""

    def __init__(self) -> None:
        self.count = 0
        self.constants: dict[tuple[str, Shape, bytes], Value] = {}

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"_{hint}{self.count}"


_FOLDS: Mapping[str, Callable[..., Any]] = {
    # Exact in any correct implementation, so a plan's bytes do not depend on the machine that built it.
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Abs": np.abs,
    "Max": np.maximum,
    "Min": np.minimum,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Not": np.logical_not,
    "Where": np.where,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


class Graph:
    """One graph under construction: a model's main graph, or the body of a Scan or an If inside ``parent``."""

    def __init__(self, parent: "Graph | None" = None, *, hoists: bool = False) -> None:
        """Open a graph; ``hoists`` says that nodes which read only outer values belong outside (a Scan's body)."""
        self.parent = parent
        self.hoists = hoists
        self.model: _Model = parent.model if parent else _Model()
        self.nodes: list[Node] = []
        self.producers: dict[str, Node] = parent.producers if parent else {}
        self._seen: dict[tuple[Any, ...], tuple[Value, ...]] = {}

    # --- values -------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int], dtype: Any) -> Value:
        """Declare a value that comes from outside under the given name."""
        return Value(name, tuple(shape), np.dtype(dtype), self)

    def fresh_input(self, shape: Sequence[int], dtype: Any) -> Value:
        """Declare an input of a body."""
        return self.input(self.model.fresh("in"), shape, dtype)

    def const(self, content: Any, dtype: Any = None) -> Value:
        """Return the constant; equal ones are one."""
        array = np.ascontiguousarray(np.asarray(content, dtype=dtype)).reshape(np.shape(content))
        key = (array.dtype.str, array.shape, array.tobytes())
        found = self.model.constants.get(key)
        if found is None:
            element_type(array.dtype)
            found = Value(self.model.fresh("c"), array.shape, array.dtype, None, array)
            self.model.constants[key] = found
        return found

    def ints(self, numbers: Iterable[int]) -> Value:
        """Return a constant vector of int64: axes, shapes, bounds."""
        return self.const(np.array([int(n) for n in numbers], np.int64))

    def producer(self, value: Value) -> Node | None:
        """Return the node that computes ``value``; None for inputs and constants."""
        return self.producers.get(value.name)

    def find(self, op: str, inputs: Sequence[Value]) -> Value | None:
        """Return the value of an attribute-free operator on these inputs if some graph in scope has it already."""
        key = (op, tuple(v.name for v in inputs), 1, ())
        at: Graph | None = self
        while at is not None:
            if key in at._seen:
                return at._seen[key][0]
            at = at.parent
        return None

    # --- nodes --------------------------------------------------------------------------------------------------

    def op(self, op: str, inputs: Sequence[Value], shape: Sequence[int], dtype: Any, **attributes: Attribute) -> Value:
        """Add an operator with one output of the given shape and dtype, or find the one that is already there."""
        if op in _FOLDS and (folded := self._fold(op, inputs, shape, dtype)) is not None:
            return folded
        return self.ops(op, inputs, [(tuple(shape), dtype)], **attributes)[0]

    def ops(
        self, op: str, inputs: Sequence[Value], outputs: Sequence[tuple[Shape, Any]], **attributes: Attribute
    ) -> tuple[Value, ...]:
        """Add an operator with several outputs, each a shape and a dtype."""
        assert op in ALLOWED_OPS, f"{op} is not on the list of allowed operators"
        home = self._home(inputs)
        key = (op, tuple(v.name for v in inputs), len(outputs), tuple(sorted(attributes.items(), key=lambda kv: kv[0])))
        reusable = not any(isinstance(a, GraphProto | TensorProto) for a in attributes.values())
        at: Graph | None = home
        while reusable and at is not None:
            if key in at._seen:
                return at._seen[key]
            at = at.parent
        names = [self.model.fresh(op.lower()) for _ in outputs]
        home._append(Node(op, list(inputs), names, dict(attributes)))
        values = tuple(Value(n, tuple(s), np.dtype(d), home) for n, (s, d) in zip(names, outputs, strict=True))
        if reusable:
            home._seen[key] = values
        return values

    def add_body_node(
        self,
        op: str,
        inputs: Sequence[Value],
        outputs: Sequence[tuple[Shape, Any]],
        bodies: Mapping[str, "Graph"],
        protos: Mapping[str, GraphProto],
        **attributes: Attribute,
    ) -> tuple[Value, ...]:
        """Add an operator that owns finished bodies (Scan, If); it stays in this graph."""
        names = [self.model.fresh(op.lower()) for _ in outputs]
        self._append(Node(op, list(inputs), names, {**attributes, **protos}, list(bodies.values())))
        return tuple(Value(n, tuple(s), np.dtype(d), self) for n, (s, d) in zip(names, outputs, strict=True))

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        for name in node.outputs:
            self.producers[name] = node

    def _home(self, inputs: Sequence[Value]) -> "Graph":
        graph = self
        while graph.hoists and graph.parent is not None and all(v.graph is not graph for v in inputs):
            graph = graph.parent
        return graph

    def _fold(self, op: str, inputs: Sequence[Value], shape: Sequence[int], dtype: Any) -> Value | None:
        if any(v.known is None for v in inputs) or int(np.prod(shape)) > MAX_FOLDED_ELEMENTS:
            return None
        with np.errstate(all="ignore"):
            content = _FOLDS[op](*(v.known for v in inputs))
        return self.const(np.asarray(content, dtype=dtype))

    # --- shapes -------------------------------------------------------------------------------------------------

    def broadcast(self, op: str, inputs: Sequence[Value], dtype: Any, **attributes: Attribute) -> Value:
        """Add an element-wise operator whose inputs broadcast against each other."""
        return self.op(op, inputs, np.broadcast_shapes(*(v.shape for v in inputs)), dtype, **attributes)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """Give ``value`` another shape with the same number of elements."""
        shape = tuple(int(d) for d in shape)
        if value.shape == shape:
            return value
        if value.known is not None:
            return self.const(value.known.reshape(shape))
        if 0 in shape:  # an operator would read the 0 as "as it was"
            return self.const(np.zeros(shape, value.dtype))
        made_by = self.producer(value)
        if made_by is not None and made_by.op == "Reshape":
            return self.reshape(made_by.inputs[0], shape)
        return self.op("Reshape", [value, self.ints(shape)], shape, value.dtype)

    def full(self, value: Value, shape: Sequence[int]) -> Value:
        """Widen a lazily broadcast value to exactly ``shape``."""
        shape = tuple(int(d) for d in shape)
        if value.shape == shape:
            return value
        if value.known is not None and int(np.prod(shape)) <= MAX_FOLDED_ELEMENTS:
            return self.const(np.broadcast_to(value.known, shape))
        value = self.reshape(value, (1,) * (len(shape) - len(value.shape)) + value.shape)
        if value.shape == shape:
            return value
        return self.op("Expand", [value, self.ints(shape)], shape, value.dtype)

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        """Permute the axes; free where only axes of length 1 move, and where a matrix product can swap its sides."""
        perm = tuple(int(p) for p in permutation)
        shape = tuple(value.shape[p] for p in perm)
        moved = [p for p in perm if value.shape[p] != 1]
        if moved == sorted(moved):
            return self.reshape(value, shape)
        node = self.producer(value)
        if perm == (1, 0) and node is not None and node.op == "Gemm" and len(node.inputs) == 2:  # (AB)ᵀ = BᵀAᵀ
            a, b = node.inputs
            trans_a, trans_b = int(node.attributes.get("transA", 0) == 1), int(node.attributes.get("transB", 0) == 1)
            return self.op("Gemm", [b, a], shape, value.dtype, transA=1 - trans_b, transB=1 - trans_a)
        if node is not None and node.op == "Transpose":
            first = node.attributes["perm"]
            assert isinstance(first, tuple)
            return self.transpose(node.inputs[0], [first[p] for p in perm])
        return self.op("Transpose", [value], shape, value.dtype, perm=perm)

    def cast(self, value: Value, dtype: Any) -> Value:
        """Convert the elements as C would: towards zero, and modulo 2^n between integers."""
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        if value.known is not None and value.known.size <= MAX_FOLDED_ELEMENTS:
            return self.const(value.known.astype(dtype))
        return self.op("Cast", [value], value.shape, dtype, to=element_type(dtype))

    # --- finishing ----------------------------------------------------------------------------------------------

    def outputs(self, values: Sequence[Value]) -> list[Value]:
        """Return the values as outputs of this body: each computed here, and no name twice."""
        result: list[Value] = []
        for value in values:
            own = value.graph is self and value.name in self.producers and all(value.name != r.name for r in result)
            if not own:
                name = self.model.fresh("out")
                self._append(Node("Identity", [value], [name], {}))
                value = Value(name, value.shape, value.dtype, self)
            result.append(value)
        return result

    def rename_outputs(self, values: Sequence[Value], names: Sequence[str]) -> None:
        """Give the main graph's results the names they have outside."""
        for value, name in zip(values, names, strict=True):
            self._append(Node("Identity", [value], [name], {}))

    def body(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> GraphProto:
        """Write this graph as the body of a Scan or an If; ``outputs`` come from :meth:`outputs`."""
        self.prune(v.name for v in outputs)
        return helper.make_graph(
            [n.proto() for n in self.nodes],
            name,
            [value_info(v.name, v.shape, v.dtype) for v in inputs],
            [value_info(v.name, v.shape, v.dtype) for v in outputs],
        )

    def prune(self, outputs: Iterable[str]) -> None:
        """Drop the nodes that nothing reads."""
        live = set(outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if any(o in live for o in node.outputs):
                kept.append(node)
                live.update(_reads(node))
                while len(node.outputs) > 1 and node.outputs[-1] not in live and node.op == "MaxPool":
                    node.outputs.pop()  # pooling without its optional indices is faster
        self.nodes = kept[::-1]

    def initializers(self) -> list[TensorProto]:
        """Return the constants that the finished graph reads."""
        used = {name for node in self.nodes for name in _reads(node)}
        constants = [(v.name, v.known) for v in self.model.constants.values() if v.known is not None]
        return [numpy_helper.from_array(known, name) for name, known in constants if name in used]


def _reads(node: Node) -> Iterable[str]:
    """Yield every name that a node reads, also from inside its bodies."""
    yield from (v.name for v in node.inputs)
    for body in node.bodies:
        for inner in body.nodes:
            yield from _reads(inner)
