"""Training on the device against a slow reference in NumPy, and every way in which it must refuse."""

import numpy as np
import pytest

from covey.device.batches import make_chunks
from covey.device.evaluate import Evaluator, evaluate, predict
from covey.device.trainer import OnnxTrainer, TrainingJob, TrainingStopped, hyper_values, result_of
from covey.plans.plan import unpack_plan
from covey.types.errors import (
    ExampleError,
    PlanFormatError,
    PlanRefusedError,
    TooFewExamplesError,
    TrainingError,
    UpdateRangeError,
)
from covey.types.tensors import flatten_tensors, unpack_tensors

from . import world

SEED = bytes(range(32))


def job(plan=None, **fields) -> TrainingJob:
    plan = plan or world.plan()
    params = unpack_tensors(plan.manifest.params, world.checkpoint())
    return TrainingJob(
        **{"plan": plan, "phase": 0, "params": params, "shared": {}, "hyper": {}, "seed": SEED, **fields}
    )


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def gradient(w, b, x, y):
    """Return the gradients of the *summed* cross-entropy, and that sum."""
    p = softmax(x @ w + b)
    error = p - np.eye(world.NUM_CLASSES)[y]
    return x.T @ error, error.sum(axis=0), -np.log(p[np.arange(len(y)), y]).sum()


def reference_fedavg(job, examples):
    """Algorithm 1's ClientUpdate, one step at a time, in float64."""
    w, b = (np.asarray(job.params[k], np.float64) for k in ("w", "b"))
    start, loss = (w, b), 0.0
    phase = job.plan.manifest.phases[0]
    for chunk in make_chunks(examples, phase, seed=SEED):
        for x, y, mask in zip(chunk.batch["x"], chunk.batch["y"], chunk.mask, strict=True):
            dw, db, step_loss = gradient(w, b, x[mask].astype(np.float64), y[mask])
            w, b = w - 0.1 * dw / mask.sum(), b - 0.1 * db / mask.sum()
            loss += step_loss
    return {"w": w - start[0], "b": b - start[1]}, loss


@pytest.mark.parametrize("count", [3, 4, 13, 60])
def test_federated_averaging_matches_a_slow_reference(count):
    examples = world.points(count)
    result = OnnxTrainer().run(job(), examples)
    used = min(count, 50)
    delta, loss = reference_fedavg(job(), {k: v[:50] for k, v in examples.items()})
    weight = min(used, 20)
    assert (result.num_examples, result.weight, result.num_steps) == (used, weight, 2 * -(-used // 4))
    expected = flatten_tensors({k: v.astype(np.float32) for k, v in delta.items()}, job().plan.manifest.params) * weight
    # A step rounds parameters of magnitude < 2 a handful of times: 2**-24 * 2 * 8 operations, over 26 steps, weighted.
    np.testing.assert_allclose(result.segments["model"], expected, atol=26 * 16 * 2.0**-24 * weight)
    assert result.metrics["examples"] == result.metrics["weight"] == 2 * used
    # The loss is a float32 sum of at most 100 terms below 4: each addition rounds by at most 400 * 2**-24.
    assert result.metrics["loss"] == pytest.approx(loss, abs=100 * 400 * 2.0**-24)
    header = result.segments["header"]
    assert header.dtype == np.float64
    assert header.tolist() == [1.0, weight, *(result.metrics[k] for k in job().plan.manifest.metrics)]


def test_a_gradient_plan_sends_the_gradient_of_the_mean_loss_over_everything():
    plan, examples = world.plan("fedsgd"), world.points(14)
    result = OnnxTrainer().run(job(plan), examples)
    params = job(plan).params
    dw, db, _ = gradient(
        *(np.asarray(params[k], np.float64) for k in ("w", "b")), examples["x"].astype(float), examples["y"]
    )
    expected = flatten_tensors(
        {"w": (-dw / 14).astype(np.float32), "b": (-db / 14).astype(np.float32)}, plan.manifest.params
    )
    assert (result.num_steps, result.num_examples, result.weight) == (4, 14, 14.0)
    # 14 float32 additions of terms below 4, twice rounded in the weighting: far below 1e-5 * weight.
    np.testing.assert_allclose(result.segments["model"], expected * 14, atol=14 * 1e-5)


def test_the_same_job_gives_the_same_bits_and_another_seed_others():
    trainer, examples = OnnxTrainer(), world.points(13)
    first = trainer.run(job(), examples).segments["model"]
    assert trainer.run(job(), examples).segments["model"].tobytes() == first.tobytes()
    assert OnnxTrainer().run(job(), examples).segments["model"].tobytes() == first.tobytes()
    assert trainer.run(job(seed=bytes(32)), examples).segments["model"].tobytes() != first.tobytes()


def test_how_steps_are_cut_into_chunks_changes_no_bit():
    base = world.plan()
    phase = base.manifest.phases[0]
    one = unpack_plan(world.changed(base, phases=(_with(phase, chunk_steps=1),)))
    examples = world.points(13)
    a, b = (OnnxTrainer().run(job(p), examples) for p in (base, one))
    assert a.segments["model"].tobytes() == b.segments["model"].tobytes()
    assert a.metrics == b.metrics


def test_max_steps_ends_training_and_counts_only_what_was_seen():
    base = world.plan()
    plan = unpack_plan(world.changed(base, phases=(_with(base.manifest.phases[0], max_steps=2),)))
    result = OnnxTrainer().run(job(plan), world.points(13))
    assert (result.num_steps, result.num_examples, result.weight) == (2, 8, 8.0)


def test_the_assignment_sets_the_learning_rate_within_its_bounds():
    examples = world.points(13)
    slow = OnnxTrainer().run(job(hyper={"lr": 0.001}), examples).segments["model"]
    fast = OnnxTrainer().run(job(), examples).segments["model"]
    assert np.abs(slow).max() < np.abs(fast).max() / 10
    for bad in (1e9, float("nan"), -0.1):
        with pytest.raises(PlanRefusedError, match="assignment: lr: expected between"):
            hyper_values(world.plan().manifest, {"lr": bad})
    with pytest.raises(PlanRefusedError, match="expected values for lr, got momentum"):
        OnnxTrainer().run(job(hyper={"momentum": 0.9}), examples)


def test_an_empty_device_and_one_below_the_minimum_are_refused():
    for count, got in ((0, "none"), (2, "2")):
        with pytest.raises(TooFewExamplesError, match=f"at least 3, got {got}"):
            OnnxTrainer().run(job(), world.points(count))


def test_examples_of_another_shape_are_refused():
    with pytest.raises(ExampleError, match=r"field 'x': expected float32 \[n, 3\], got float32 \[5, 2\]"):
        OnnxTrainer().run(job(), {"x": np.zeros((5, 2), np.float32), "y": np.zeros(5, np.int32)})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_training_at_its_chunk(bad):
    examples = world.points(40)
    examples["x"][7, 1] = bad
    with pytest.raises(TrainingError, match="loss: expected finite values, got a NaN or an infinity") as caught:
        OnnxTrainer().run(job(), examples)
    assert "learning rate" in caught.value.hint


def test_an_update_that_is_not_finite_or_too_large_is_refused():
    manifest = world.plan().manifest
    totals = dict.fromkeys(manifest.metrics, 1.0)
    good = {"model.w": np.zeros((3, 2), np.float32), "model.b": np.zeros(2, np.float32)}

    def weigh(b):
        return result_of(manifest, 0, {**good, "model.b": np.float32(b)}, totals, num_examples=5, num_steps=1)

    for bad in ([np.nan, 0], [0, np.nan], [0, -np.inf]):
        with pytest.raises(TrainingError, match="segment 'model'"):
            weigh(bad)
    with pytest.raises(UpdateRangeError, match="changes of at most 16, got 17"):
        weigh([0, -17])
    with pytest.raises(TrainingError, match="metrics"):
        result_of(manifest, 0, good, {**totals, "correct": float("nan")}, num_examples=5, num_steps=1)
    assert weigh([0, 16]).segments["model"].max() == 16 * 5


def test_training_stops_between_chunks():
    asked = []

    def should_stop():
        asked.append(True)
        return len(asked) > 2

    with pytest.raises(TrainingStopped):
        OnnxTrainer().run(job(), world.points(40), should_stop)
    assert len(asked) == 3


def test_a_device_that_waits_for_its_turn_can_be_stopped():
    trainer = OnnxTrainer()

    def inner_stops():
        with pytest.raises(TrainingStopped):
            trainer.run(job(), world.points(13), lambda: True)
        return True

    with pytest.raises(TrainingStopped):
        trainer.run(job(), world.points(13), inner_stops)


def test_a_graph_that_does_not_fit_the_manifest_is_a_clear_error():
    base = world.plan()
    swapped = unpack_plan(world.changed(base, {"begin": base.graphs["eval"]}))
    with pytest.raises(PlanFormatError, match=r"plan: begin.onnx: expected only inputs that a device knows"):
        OnnxTrainer().run(job(swapped), world.points(13))
    broken = unpack_plan(world.changed(base, {"train": b"no model"}))
    with pytest.raises(PlanFormatError, match=r"plan: train.onnx: expected a graph that onnxruntime loads"):
        OnnxTrainer().run(job(broken), world.points(13))


@pytest.mark.parametrize("count", [1, 5, 13])
def test_evaluation_sums_over_every_example_once(count):
    plan, examples = world.plan(), world.points(count)
    params = job().params
    sums = evaluate(plan, params, examples)
    z = examples["x"].astype(float) @ params["w"] + params["b"]
    assert sums["examples"] == sums["weight"] == count
    assert sums["correct"] == (z.argmax(axis=1) == examples["y"]).sum()
    _, _, loss = gradient(
        params["w"].astype(float), params["b"].astype(float), examples["x"].astype(float), examples["y"]
    )
    # At most 13 float32 terms below 4, summed: each rounding is below 52 * 2**-24.
    assert sums["loss"] == pytest.approx(loss, abs=13 * 52 * 2.0**-24)


def test_prediction_serves_one_example():
    params = job().params
    x = world.points(1)["x"][0]
    out = predict(world.plan(), params, {"x": x})
    np.testing.assert_allclose(out["p"], softmax((x @ params["w"] + params["b"])[None])[0], atol=8 * 2.0**-24)
    with pytest.raises(ExampleError, match=r"input 'x': expected float32 \[3\], got float32 \[1, 3\]"):
        Evaluator(world.plan()).predict(params, {"x": x[None]})
    with pytest.raises(ExampleError, match="got nothing"):
        predict(world.plan(), params, {})


def _with(struct, **fields):
    return type(struct)(**{**{f: getattr(struct, f) for f in struct.__struct_fields__}, **fields})
