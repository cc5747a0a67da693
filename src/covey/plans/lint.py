"""Check a plan's graphs before anything loads them: operators, domains, versions, and nothing but inline tensors.

The device has no ``onnx`` package, so this module walks the protobuf bytes itself, guided by a table of the fields that
plans use. It fails closed: a field outside the table, a field of another wire type, or a single-valued field that
comes twice (readers differ in which one wins) is refused, so that no reader can see anything here that this one did
not. Everything is bounded before it is read: bytes, fields, nodes, depth.

Field numbers: ``onnx.proto`` of ONNX 1.17.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from covey.plans.ops import ALLOWED_OPS, MAX_IR_VERSION, OPSET
from covey.plans.plan import MAX_PLAN_BYTES, Plan
from covey.plans.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Message, Reader
from covey.types.errors import PlanFormatError, PlanOpError

__all__ = ["GraphSummary", "TensorType", "lint_graph", "lint_plan"]

MAX_DEPTH = 8
"""How deep graphs may nest: a Scan over an If needs 2."""

MAX_NODES = 20_000
"""Most nodes in a graph, subgraphs included: the char LSTM's training graph has about 300."""

MAX_FIELDS = 400_000
"""Most protobuf fields in a graph: bounds the memory and time of the walk."""

_DTYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    11: ("float64", 8),
    12: ("uint32", 4),
}


_I, _S = VARINT, BYTES
# What a reader might act on and plans must not hold is left out of the table, or named in _REFUSED for a clear error.
_TABLE: Mapping[str, Mapping[int, Field]] = {
    "Model": {
        1: Field("ir_version", _I),
        2: Field("producer_name"),
        3: Field("producer_version"),
        4: Field("domain"),
        5: Field("model_version", _I),
        6: Field("doc_string"),
        7: Field("graph"),
        8: Field("opset_import", _S, True),
    },
    "OperatorSetId": {1: Field("domain"), 2: Field("version", _I)},
    "Graph": {
        1: Field("node", _S, True),
        2: Field("name"),
        5: Field("initializer", _S, True),
        10: Field("doc_string"),
        11: Field("input", _S, True),
        12: Field("output", _S, True),
        13: Field("value_info", _S, True),
    },
    "Node": {
        1: Field("input", _S, True),
        2: Field("output", _S, True),
        3: Field("name"),
        4: Field("op_type"),
        5: Field("attribute", _S, True),
        6: Field("doc_string"),
        7: Field("domain"),
    },
    "Attribute": {
        1: Field("name"),
        2: Field("f", FIXED32),
        3: Field("i", _I),
        4: Field("s"),
        5: Field("t"),
        6: Field("g"),
        7: Field("floats", FIXED32, True),
        8: Field("ints", _I, True),
        9: Field("strings", _S, True),
        10: Field("tensors", _S, True),
        11: Field("graphs", _S, True),
        13: Field("doc_string"),
        20: Field("type", _I),
    },
    "Tensor": {
        1: Field("dims", _I, True),
        2: Field("data_type", _I),
        4: Field("float_data", FIXED32, True),
        5: Field("int32_data", _I, True),
        7: Field("int64_data", _I, True),
        8: Field("name"),
        9: Field("raw_data"),
        10: Field("double_data", FIXED64, True),
        11: Field("uint64_data", _I, True),
        12: Field("doc_string"),
    },
    "ValueInfo": {1: Field("name"), 2: Field("type"), 3: Field("doc_string")},
    "Type": {1: Field("tensor_type"), 6: Field("denotation")},
    "TensorType": {1: Field("elem_type", _I), 2: Field("shape")},
    "Shape": {1: Field("dim", _S, True)},
    "Dimension": {1: Field("dim_value", _I), 2: Field("dim_param"), 3: Field("denotation")},
}

_REFUSED: Mapping[tuple[str, int], str] = {
    ("Model", 14): "metadata",
    ("Model", 20): "training info",
    ("Model", 25): "functions",
    ("Model", 26): "device configurations",
    ("Graph", 14): "quantization annotations",
    ("Graph", 15): "a sparse tensor",
    ("Graph", 16): "metadata",
    ("Node", 8): "a function overload",
    ("Node", 9): "metadata",
    ("Node", 10): "device configurations",
    ("Attribute", 14): "a type attribute",
    ("Attribute", 15): "a type attribute",
    ("Attribute", 21): "a reference to a function's attribute",
    ("Attribute", 22): "a sparse tensor",
    ("Attribute", 23): "a sparse tensor",
    ("Tensor", 3): "a segmented tensor",
    ("Tensor", 6): "a string tensor",
    ("Tensor", 13): "external data",
    ("Tensor", 14): "external data",
    ("Type", 4): "a sequence",
    ("Type", 5): "a map",
    ("Type", 8): "a sparse tensor",
    ("Type", 9): "an optional value",
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A declared input or output: name, dtype, and dimensions; a string is one that is known only at run time."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(slots=True)
class GraphSummary:
    """What a graph holds, subgraphs included.

    Attributes:
        opset: version of the default domain.
        ops: how often each operator occurs.
        inputs: of the outermost graph.
        outputs: of the outermost graph.
        constant_bytes: bytes of all tensors inside.
        depth: how deep graphs nest; 1 without subgraphs.
    """

    opset: int = 0
    ops: Counter[str] = field(default_factory=Counter)
    inputs: tuple[TensorType, ...] = ()
    outputs: tuple[TensorType, ...] = ()
    constant_bytes: int = 0
    depth: int = 0

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return sum(self.ops.values())


def lint_plan(plan: Plan) -> dict[str, GraphSummary]:
    """Check every graph of a plan; return what each holds.

    Raises:
        PlanOpError, PlanFormatError: see :func:`lint_graph`.
    """
    return {name: lint_graph(model, f"{name}.onnx") for name, model in sorted(plan.graphs.items())}


def lint_graph(model: bytes, where: str) -> GraphSummary:
    """Check a serialized ONNX model; return what it holds.

    Args:
        model: the bytes that the runtime would load.
        where: the file's name, for errors.

    Raises:
        PlanOpError: an operator, domain, version or feature outside the list; names it and the place.
        PlanFormatError: not a well-formed model, or too large.
    """
    if len(model) > MAX_PLAN_BYTES:
        raise PlanFormatError(where, expected=f"at most {MAX_PLAN_BYTES} bytes", got=f"{len(model)} bytes")
    return _Walk().model(memoryview(model), where)


class _Walk:
    """One walk over one model, with the counters that bound it."""

    def __init__(self) -> None:
        self.summary = GraphSummary()
        self._reader = Reader(MAX_FIELDS)

    def model(self, data: memoryview, where: str) -> GraphSummary:
        message = self._read("Model", data, where)
        ir_version = message.number("ir_version")
        if not 3 <= ir_version <= MAX_IR_VERSION:
            raise PlanOpError(where, expected=f"ONNX file version 3 to {MAX_IR_VERSION}", got=str(ir_version))
        imports = [self._read("OperatorSetId", v, f"{where}: opset_import") for v in message.views("opset_import")]
        for entry in imports:
            if entry.text("domain"):
                raise PlanOpError(f"{where}: opset_import", expected=_DEFAULT, got=_quoted(entry.text("domain")))
        if len(imports) != 1:
            raise PlanFormatError(f"{where}: opset_import", expected="one entry", got=str(len(imports)))
        self.summary.opset = imports[0].number("version")
        if not 1 <= self.summary.opset <= OPSET:
            raise PlanOpError(f"{where}: opset_import", expected=f"opset 1 to {OPSET}", got=str(self.summary.opset))
        graphs = message.views("graph")
        if len(graphs) != 1:
            raise PlanFormatError(where, expected="a model with one graph", got=f"{len(graphs)} graphs")
        self._graph(graphs[0], where, 1)
        return self.summary

    def _graph(self, data: memoryview, where: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise PlanOpError(where, expected=f"graphs nested at most {MAX_DEPTH} deep", got="a deeper one")
        self.summary.depth = max(self.summary.depth, depth)
        message = self._read("Graph", data, where)
        declared = {
            kind: tuple(self._value_info(v, f"{where}: {kind}") for v in message.views(kind))
            for kind in ("input", "output", "value_info")
        }
        if depth == 1:
            self.summary.inputs, self.summary.outputs = declared["input"], declared["output"]
        for view in message.views("initializer"):
            self._tensor(view, f"{where}: initializer")
        for index, view in enumerate(message.views("node")):
            self._node(view, where, index, depth)

    def _node(self, data: memoryview, graph: str, index: int, depth: int) -> None:
        message = self._read("Node", data, f"{graph}: node {index}")
        op, name, domain = message.text("op_type"), message.text("name"), message.text("domain")
        where = f"{graph}: node {index}" + (f" {_quoted(name)}" if name else "")
        if domain:
            raise PlanOpError(where, expected=_DEFAULT, got=f"{_quoted(op)} of domain {_quoted(domain)}")
        if op not in ALLOWED_OPS:
            raise PlanOpError(where, expected="an operator of covey.plans.ops", got=_quoted(op), hint=_HINT)
        if self.summary.num_nodes >= MAX_NODES:
            raise PlanFormatError(graph, expected=f"at most {MAX_NODES} nodes", got="more")
        self.summary.ops[op] += 1
        for view in message.views("attribute"):
            attribute = self._read("Attribute", view, where)
            place = f"{graph}: {op} {index}.{_plain(attribute.text('name'))}"
            for tensor in (*attribute.views("t"), *attribute.views("tensors")):
                self._tensor(tensor, place)
            for inner in (*attribute.views("g"), *attribute.views("graphs")):
                self._graph(inner, place, depth + 1)

    def _tensor(self, data: memoryview, where: str) -> None:
        message = self._read("Tensor", data, where)
        _, width = self._dtype(message.number("data_type"), where)
        dims = message.numbers("dims")
        raw = message.views("raw_data")
        if min(dims, default=0) < 0 or (raw and len(raw[0]) != prod(dims) * width):
            raise PlanFormatError(where, expected="as many bytes as its shape needs", got="a tensor of another size")
        self.summary.constant_bytes += len(data)

    def _value_info(self, data: memoryview, where: str) -> TensorType:
        message = self._read("ValueInfo", data, where)
        name, dtype, shape = message.text("name"), "", tuple[int | str, ...]()
        for type_view in message.views("type"):
            for view in self._read("Type", type_view, where).views("tensor_type"):
                tensor = self._read("TensorType", view, where)
                dtype = self._dtype(tensor.number("elem_type"), where)[0]
                dims = [d for s in tensor.views("shape") for d in self._read("Shape", s, where).views("dim")]
                shape = tuple(self._dimension(d, where) for d in dims)
        return TensorType(name, dtype, shape)

    def _dimension(self, data: memoryview, where: str) -> int | str:
        message = self._read("Dimension", data, where)
        return message.numbers("dim_value")[0] if message.numbers("dim_value") else message.text("dim_param") or "?"

    @staticmethod
    def _dtype(number: int, where: str) -> tuple[str, int]:
        if number not in _DTYPES:
            allowed = ", ".join(name for name, _ in _DTYPES.values())
            raise PlanOpError(where, expected=f"a tensor of {allowed}", got=f"ONNX data type {number}")
        return _DTYPES[number]

    def _read(self, kind: str, data: memoryview, where: str) -> Message:
        """Cut a message into its fields; refuse every field that is not in the table."""

        def refuse(number: int) -> PlanOpError:
            got = _REFUSED.get((kind, number), f"{kind} field {number}")
            return PlanOpError(where, expected="only what covey.plans.lint lists", got=got, hint=_HINT)

        return self._reader.message(data, _TABLE[kind], where, refuse)


_DEFAULT = "operators of the default domain only"
_HINT = "plans are built with `covey plan build`, which emits nothing else"


def _plain(text: str) -> str:
    """Return a name as it may be printed: short, and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:60])


def _quoted(text: str) -> str:
    return f"'{_plain(text)}'"
