"""The parity check itself: a wrong graph does not pass, and a right one does for a derived reason."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from covey.algorithms.local.fedavg import fedavg_local
from covey.plans.lowering import build, compare, count_roundings, loop, lower, lower_scan, run_model, tolerance
from covey.plans.lowering.check import wobble
from covey.types.errors import ParityError

from .agreement import inputs_of, named, reals, structs_of
from .tasks import MLP, OPTIONS

X, W = reals(5, 6), reals(6, 3, seed=1)
SAMPLE = inputs_of([X, W])


def layer(x, w):
    return jnp.tanh(x @ w * 0.7 - 0.2), jnp.argmax(x @ w, 1)


FN = named(layer)


def model_of(change=lambda graph: None) -> bytes:
    model = onnx.ModelProto.FromString(lower(FN, structs_of(SAMPLE), name="test"))
    change(model.graph)
    return model.SerializeToString()


def check(model: bytes, fn=FN, **options):
    return compare(model, jax.jit(fn), [SAMPLE], num_roundings=count_roundings(fn, SAMPLE), **options)


def swap(old, new):
    def change(graph):
        (node,) = [n for n in graph.node if n.op_type == old]
        node.op_type = new

    return change


def nudge(factor):
    def change(graph):
        (tensor,) = [t for t in graph.initializer if numpy_helper.to_array(t) == np.float32(0.7)]
        tensor.CopyFrom(numpy_helper.from_array(np.float32(0.7 * factor), tensor.name))

    return change


def negate_the_product(graph):
    (node,) = [n for n in graph.node if n.op_type == "Gemm"]
    node.attribute.append(onnx.helper.make_attribute("alpha", -1.0))


WRONG = {
    "another operator": swap("Sub", "Add"),
    "another function": swap("Tanh", "Sin"),
    "another constant": nudge(1.01),
    "a constant off by a tenth of a percent": nudge(1.001),
    "a product of the wrong sign": negate_the_product,
    "another index": swap("ArgMax", "ArgMin"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_graph_does_not_pass(name):
    check(model_of())
    with pytest.raises(ParityError, match=r"parity: y[01]: "):
        check(model_of(WRONG[name]))


def test_a_constant_off_by_rounding_passes():
    found = check(model_of(nudge(1 + 1.2e-7)))
    assert [a.name for a in found] == ["y0", "y1"]
    assert 0 < found[0].max_abs <= found[0].allowed and found[1].max_abs == 0


def test_other_outputs_shapes_and_dtypes_do_not_pass():
    model = model_of()
    for fn in (
        lambda x, w: layer(x, w)[0],
        lambda x, w: (layer(x, w)[0][:1], layer(x, w)[1]),
        lambda x, w: (layer(x, w)[0], layer(x, w)[1].astype(jnp.uint32)),
    ):
        with pytest.raises(ParityError):
            check(model, named(fn))


def test_infinities_and_nans_must_be_in_the_same_places():
    fn = named(lambda x: jnp.where(x > 0, x, jnp.inf))
    model = lower(fn, structs_of(inputs_of([X])), name="test")
    for other in (lambda x: jnp.where(x > 0, x, -jnp.inf), lambda x: jnp.where(x > 0, x, jnp.nan), lambda x: x):
        with pytest.raises(ParityError):
            compare(model, named(other), [inputs_of([X])], num_roundings=1)
    compare(model, fn, [inputs_of([X])], num_roundings=1)


def test_an_error_in_an_update_does_not_vanish_beside_the_parameter():
    """The update is a thousandth of the parameter, and wrong by a tenth: 1e-4 of the parameter, below the tolerance."""
    sample = inputs_of([1000 + X, X])
    right, wrong = named(lambda p, g: p - g), named(lambda p, g: p - 1.1 * g)
    model = lower(wrong, structs_of(sample), name="test")
    assert 0.1 * np.abs(X).max() < tolerance(10_000) * 1000
    compare(model, right, [sample], num_roundings=10_000)
    with pytest.raises(ParityError):
        compare(model, right, [sample], num_roundings=10_000, previous={"y0": "x0"})


def test_slack_counts_for_at_most_a_hundredth_of_the_scale():
    sample = inputs_of([X])
    scale = float(np.abs(X).max())
    model = lower(named(lambda x: x * 1.02), structs_of(sample), name="test")
    near = lower(named(lambda x: x * 1.009), structs_of(sample), name="test")
    for slack in (0.0, 1e9):
        with pytest.raises(ParityError):
            compare(model, named(lambda x: x), [sample], num_roundings=1, slack={"y0": slack})
    compare(near, named(lambda x: x), [sample], num_roundings=1, slack={"y0": scale})


def test_roundings_are_counted_along_the_longest_chain():
    x, w = X, W
    assert count_roundings(lambda a, b: a @ b, x, w) == 6
    assert count_roundings(lambda a, b: jnp.sin(a @ b) + 1, x, w) == 8
    assert count_roundings(lambda a: (jnp.sin(a), jnp.cos(jnp.sin(a))), x) == 2
    assert count_roundings(lambda a: jax.lax.scan(lambda c, r: (c + r, None), a[0], a)[0], x) >= 5
    assert count_roundings(lambda a: jax.lax.cond(a[0, 0] > 0, lambda v: v.sum(), lambda v: v[0, 0], a), x) >= 30
    assert tolerance(4) == 2 * tolerance(1) > 0


def test_wobble_is_large_only_where_a_function_magnifies_rounding():
    sample = {"a": np.abs(X) + np.float32(1)}
    calm = wobble(lambda d: {"y": jnp.sin(d["a"]), "n": jnp.argmax(d["a"])}, sample, ["a"])
    wild = wobble(lambda d: {"y": 1e6 * (d["a"] - sample["a"])}, sample, ["a"])
    assert calm["n"] == 0 and calm["y"] < 1e-6 and wild["y"] > 1e-2


def test_a_loop_over_steps_is_what_the_scan_graph_computes():
    """A concrete start value is held by the model; what only shared inputs decide is computed outside the loop."""

    def step(carry, shared, x):
        return {"h": jnp.tanh(carry["h"] @ jnp.sin(shared["w"]) + x["v"]), "n": carry["n"] + 1}

    def struct(*shape):
        return jax.ShapeDtypeStruct(shape, np.float32)

    carry = {"h": struct(3), "n": np.zeros((), np.float32)}
    names = {"h": "next.h", "n": "next.n"}
    model = lower_scan(step, carry=carry, shared={"w": struct(3, 3)}, xs={"v": struct(3)}, out_names=names, name="loop")
    reference = loop(step, carry=carry, shared=["w"], xs=["v"], out_names=names)
    samples = [{"h": reals(3), "w": reals(3, 3, seed=1), "v": reals(n, 3, seed=2)} for n in (1, 2, 7)]
    compare(model, reference, samples, num_roundings=7 * 6)
    assert run_model(model, samples[2])["next.n"] == 7
    graph = onnx.ModelProto.FromString(model).graph
    (scan,) = [n for n in graph.node if n.op_type == "Scan"]
    body = scan.attribute[[a.name for a in scan.attribute].index("body")].g
    assert "Sin" in {n.op_type for n in graph.node} and "Sin" not in {n.op_type for n in body.node}


def test_no_plan_is_made_of_a_wrong_graph(monkeypatch):
    right = build.lower_scan

    def wrong(*args, **kwargs):
        model = onnx.ModelProto.FromString(right(*args, **kwargs))
        assert put_abs_for_relu(model.graph)
        return model.SerializeToString()

    monkeypatch.setattr(build, "lower_scan", wrong)
    with pytest.raises(ParityError, match="train"):
        build.build_plan(MLP, fedavg_local(0.1), OPTIONS)


def put_abs_for_relu(graph) -> bool:
    """Put Abs in the place of a Relu, wherever in the bodies of Scan and If it is; say whether there was one."""
    for node in graph.node:
        if node.op_type == "Relu":
            node.op_type = "Abs"
            return True
        if any(put_abs_for_relu(a.g) for a in node.attribute if a.HasField("g")):
            return True
    return False
