import numpy as np
import onnxruntime as ort
import pytest
from device import world

from covey.device.evaluate import predict
from covey.plans.export import onnx_bytes, safetensors_bytes
from covey.plans.plan import Plan
from covey.types.errors import PlanFormatError
from covey.types.tensors import unpack_tensors

NOTES = {"covey.population": "p", "covey.version": "3"}


def params():
    return unpack_tensors(world.plan().manifest.params, world.checkpoint())


def test_the_exported_model_predicts_what_the_device_predicts():
    data = onnx_bytes(world.plan(), params(), NOTES)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input.x"]
    assert session.get_modelmeta().custom_metadata_map == NOTES
    for x in world.points(20)["x"]:
        (got,) = session.run(["output.p"], {"input.x": x[None]})
        # With constant parameters the runtime may order the same few float32 operations otherwise: a logit is a sum of
        # four terms below 4, each rounded by at most 2**-24 of 16, twice over; a probability moves by less.
        wanted = predict(world.plan(), params(), {"x": x})["p"]
        np.testing.assert_allclose(got[0], wanted, rtol=0, atol=2 * 4 * 16 * 2.0**-24)
    assert data == onnx_bytes(world.plan(), params(), NOTES)


def test_the_exported_tensors_are_the_parameters():
    safetensors = pytest.importorskip("safetensors", reason="needs safetensors")
    from safetensors.numpy import load

    back = load(data := safetensors_bytes(params(), NOTES))
    assert set(back) == set(params())
    for name, values in params().items():
        assert back[name].dtype == values.dtype and (back[name] == values).all()
    assert b'"covey.version":"3"' in data[:1000], safetensors.__version__


def test_a_plan_that_predicts_nothing_cannot_be_exported():
    plan = world.plan()
    silent = Plan(plan.manifest, {k: v for k, v in plan.graphs.items() if k != "predict"}, plan.hash, plan.num_bytes)
    with pytest.raises(PlanFormatError, match="predict"):
        onnx_bytes(silent, params(), {})
    other = Plan(plan.manifest, {**plan.graphs, "predict": plan.graphs["eval"]}, plan.hash, plan.num_bytes)
    with pytest.raises(PlanFormatError, match="another input"):
        onnx_bytes(other, params(), {})


def test_parameters_that_a_graph_does_not_use_are_left_out():
    extra = {**params(), "unused": np.zeros(3, np.float32)}
    assert onnx_bytes(world.plan(), extra, NOTES) == onnx_bytes(world.plan(), params(), NOTES)
