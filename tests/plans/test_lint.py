"""The check of a plan's graphs: what it lets through, everything it refuses, and that no bytes can surprise it."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from covey.plans.lint import MAX_DEPTH, lint_graph
from covey.plans.ops import ALLOWED_OPS
from covey.types.errors import CoveyError, PlanFormatError, PlanOpError


def info(name, shape=("S", 2), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(nodes=None, initializers=(), opset=21, ir_version=10, **fields) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "c"], ["y"], name="sum")] if nodes is None else nodes
    initializers = list(initializers) or [numpy_helper.from_array(np.ones(2, np.float32), "c")]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, **fields)


def nested(depth: int) -> onnx.NodeProto:
    """Return an If whose branch holds an If, ``depth`` graphs deep, with a foreign operator innermost."""
    inner = helper.make_node("Evil", ["x"], ["z"], name="deep")
    for level in range(depth):
        branch = helper.make_graph([inner], f"b{level}", [], [info("z")])
        inner = helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)
    return inner


def lint(m: onnx.ModelProto):
    return lint_graph(m.SerializeToString(), "train.onnx")


def test_a_summary_says_what_a_graph_holds():
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "b", [], [info("z")])
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=branch),
    ]
    summary = lint(model(nodes))
    assert summary.ops == {"Add": 1, "If": 1, "Neg": 2} and summary.num_nodes == 4
    assert (summary.depth, summary.opset) == (2, 21)
    assert [str(t) for t in summary.inputs] == ["x: float32 [S, 2]"]
    assert [str(t) for t in summary.outputs] == ["y: float32 [S, 2]"]
    assert summary.constant_bytes >= 8


@pytest.mark.parametrize("op", sorted(ALLOWED_OPS))
def test_every_listed_operator_passes(op):
    assert lint(model([helper.make_node(op, ["x"], ["y"])])).ops == {op: 1}


def test_a_foreign_operator_is_named_with_its_place():
    with pytest.raises(PlanOpError, match=r"train.onnx: node 0 'sum': .* got 'LSTM'"):
        lint(model([helper.make_node("LSTM", ["x"], ["y"], name="sum")]))


@pytest.mark.parametrize("depth", range(1, MAX_DEPTH))
def test_a_foreign_operator_is_found_in_any_subgraph(depth):
    with pytest.raises(PlanOpError, match=r"If 0\.(then|else)_branch: node 0 'deep': .* got 'Evil'"):
        lint(model([nested(depth)]))


def test_a_foreign_operator_is_found_in_a_list_of_graphs():
    node = helper.make_node("If", ["x"], ["y"])
    graph = helper.make_graph([helper.make_node("Evil", ["x"], ["z"])], "b", [], [info("z")])
    node.attribute.append(helper.make_attribute("branches", [graph]))
    with pytest.raises(PlanOpError, match="got 'Evil'"):
        lint(model([node]))


def test_depth_is_bounded():
    with pytest.raises(PlanOpError, match=f"nested at most {MAX_DEPTH} deep"):
        lint(model([nested(MAX_DEPTH)]))


def _function(m):
    m.functions.append(helper.make_function("d", "f", ["x"], ["y"], [], [helper.make_opsetid("", 21)]))


def _training(m):
    m.training_info.add()


def _external(m):
    tensor = m.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def _location(m):
    m.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _strings(m):
    m.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]))


def _sparse(m):
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    m.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))


def _sparse_attribute(m):
    attribute = m.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.dims.append(3)


def _half(m):
    m.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float16), "h"))


def _half_attribute(m):
    m.graph.node[0].attribute.append(helper.make_attribute("a", numpy_helper.from_array(np.ones(2, np.float16))))


def _sequence(m):
    m.graph.input.append(helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, [2]))


def _quantization(m):
    m.graph.quantization_annotation.add(tensor_name="c")


def _metadata(m):
    m.metadata_props.add(key="k", value="v")


def _reference(m):
    m.graph.node[0].attribute.add(name="a", ref_attr_name="b", type=onnx.AttributeProto.INT)


def _overload(m):
    m.graph.node[0].overload = "x"


def _domain(m):
    m.graph.node[0].domain = "com.microsoft"


def _import(m):
    m.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _opset(m):
    m.opset_import[0].version = 22


def _ir(m):
    m.ir_version = 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_function, "got functions"),
        (_training, "got training info"),
        (_external, "external data"),
        (_location, "external data"),
        (_strings, "got a string tensor|ONNX data type 8"),
        (_sparse, "a sparse tensor"),
        (_sparse_attribute, "a sparse tensor"),
        (_half, "initializer: .* got ONNX data type 10"),
        (_half_attribute, r"Add 0\.a: .* got ONNX data type 10"),
        (_sequence, "input: .* got a sequence"),
        (_quantization, "quantization annotations"),
        (_metadata, "got metadata"),
        (_reference, "a reference to a function's attribute"),
        (_overload, "a function overload"),
        (_domain, "default domain only, got 'Add' of domain 'com.microsoft'"),
        (_import, "opset_import: .* got 'com.microsoft'"),
        (_opset, "opset 1 to 21, got 22"),
        (_ir, "ONNX file version 3 to 10, got 11"),
    ],
)
def test_features_outside_the_list_are_refused(change, message):
    m = model()
    change(m)
    with pytest.raises(PlanOpError, match=message):
        lint(m)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ONNX file version"),
        (b"\x08", "truncated|end of the bytes"),
        (b"\x00", "a field number"),
        (b"\x3b", "wire type 0, 1, 2 or 5"),
        (b"\x08" + b"\xff" * 10, "a number of at most 10 bytes"),
        (b"\x3a\x05abc", "5 more bytes"),
        (b"\x0a\x00", "ir_version of wire type 0"),
        (b"\x12\x01\xff\x08\x0a", "expected one entry|opset_import"),
    ],
)
def test_malformed_bytes_are_a_clear_error(data, message):
    with pytest.raises(CoveyError, match=message) as caught:
        lint_graph(data, "train.onnx")
    assert isinstance(caught.value, PlanFormatError | PlanOpError)


def test_a_field_that_comes_twice_is_refused():
    # Protobuf lets the last of two values win, and merges two graphs: a reader that looked at one only would be fooled.
    data = model().SerializeToString()
    graph = model().graph.SerializeToString()
    with pytest.raises(PlanFormatError, match="expected one graph, got several"):
        lint_graph(data + b"\x3a" + _length(graph) + graph, "train.onnx")
    with pytest.raises(PlanFormatError, match="expected one ir_version, got several"):
        lint_graph(data + b"\x08\x0a", "train.onnx")
    node = model().graph.node[0].SerializeToString() + b"\x22\x04Evil"
    inner = b"\x0a" + _length(node) + node
    with pytest.raises(PlanFormatError, match="expected one op_type, got several"):
        lint_graph(b"\x08\x0a\x42\x02\x10\x15\x3a" + _length(inner) + inner, "train.onnx")


def test_a_tensor_of_another_size_than_its_shape_is_refused():
    m = model()
    m.graph.initializer[0].dims[0] = 1 << 40
    with pytest.raises(PlanFormatError, match="as many bytes as its shape needs"):
        lint(m)
    m.graph.initializer[0].dims[0] = -2
    with pytest.raises(PlanFormatError, match="as many bytes as its shape needs"):
        lint(m)


def test_names_are_printed_without_control_characters():
    with pytest.raises(PlanOpError) as caught:
        lint(model([helper.make_node("\x1b[2J" + "A" * 500, ["x"], ["y"])]))
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_time_and_memory_are_bounded():
    attribute = helper.make_attribute("a", list(range(450_000)))
    node = helper.make_node("Add", ["x", "c"], ["y"])
    node.attribute.append(attribute)
    with pytest.raises(PlanFormatError, match="at most 400000 fields"):
        lint(model([node]))
    with pytest.raises(PlanFormatError, match="at most 20000 nodes"):
        lint(model([helper.make_node("Neg", ["x"], ["y"])] * 20_001))
    with pytest.raises(PlanFormatError, match="at most 16777216 bytes"):
        lint_graph(bytes((16 << 20) + 1), "train.onnx")


def _branch(op: str) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node(op, ["x"], ["z"])], "b", [], [info("z")])


SAMPLE = model(
    [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("If", ["k"], ["y"], then_branch=_branch("Neg"), else_branch=_branch("Identity")),
    ]
).SerializeToString()


@settings(max_examples=400)
@given(st.data())
def test_mutated_bytes_give_an_error_of_ours_or_a_summary(data):
    raw = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat"])):
            case "flip":
                raw[place] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                raw[place] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[place : place + data.draw(st.integers(1, 8))]
            case "insert":
                raw[place:place] = data.draw(st.binary(max_size=8))
            case "repeat":
                raw += raw[place : place + 40]
        if not raw:
            break
    _never_surprised(bytes(raw))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_an_error_of_ours(data):
    _never_surprised(data)


def _never_surprised(data: bytes) -> None:
    """Lint; where it passes, ONNX's own reader must see the same operators: nothing was hidden from the walk."""
    try:
        summary = lint_graph(data, "train.onnx")
    except CoveyError:
        return
    seen = _ops(onnx.load_model_from_string(data).graph)
    assert sorted(seen) == sorted(summary.ops.elements())


def _ops(graph) -> list[str]:
    out = []
    for node in graph.node:
        out.append(node.op_type)
        for attribute in node.attribute:
            for inner in [attribute.g] * attribute.HasField("g") + list(attribute.graphs):
                out += _ops(inner)
    return out


def _length(data: bytes) -> bytes:
    """Return a length as a varint."""
    out, n = bytearray(), len(data)
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])
