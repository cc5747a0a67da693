"""Plans: what their graphs do with masks, chunks and optimizers, and that building is reproducible."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covey.algorithms.local.fedavg import fedavg_local, local_optimizer
from covey.algorithms.local.fedsgd import fedsgd_local
from covey.plans.lint import lint_plan
from covey.plans.lowering import run_model, tolerance
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.lowering.programs import prefixed
from covey.plans.ops import ALLOWED_OPS
from covey.plans.plan import unpack_plan

from . import tasks
from .tasks import CNN, DROPOUT, LSTM, MLP, OPTIONS, batches, same_bytes, start, train

PLANS = {
    "sgd": lambda: tasks.plan_of(MLP),
    "momentum": lambda: tasks.plan_of(MLP, fedavg_local(0.1, optimizer="momentum")),
    "adam": lambda: tasks.plan_of(MLP, fedavg_local(0.01, optimizer="adam")),
    "gradient": lambda: tasks.plan_of(MLP, fedsgd_local()),
    "dropout": lambda: tasks.plan_of(DROPOUT),
    "cnn": lambda: tasks.plan_of(CNN),
    "lstm": lambda: tasks.plan_of(LSTM),
}


@cache
def plan(name):
    return PLANS[name]()


def task_of(name):
    return DROPOUT if name == "dropout" else MLP


OPTIMIZERS = ["sgd", "momentum", "adam"]
ON_POINTS = [*OPTIMIZERS, "gradient", "dropout"]


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_holds_nothing_but_allowed_operators(name):
    summaries = lint_plan(plan(name))
    assert set(summaries) >= {"begin", "finish", "eval", plan(name).manifest.phases[0].graph}
    assert set().union(*(s.ops for s in summaries.values())) <= ALLOWED_OPS


def test_the_same_task_gives_the_same_bytes():
    assert unpack_plan(build_plan(MLP, fedavg_local(0.1), OPTIONS)).hash == plan("sgd").hash


def test_another_process_gives_the_same_bytes():
    """Sets of strings are walked in another order there."""
    code = "from lowering.tasks import MLP, plan_of; print(plan_of(MLP).hash)"
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == plan("sgd").hash


@pytest.mark.parametrize("name", ON_POINTS)
def test_masked_examples_do_not_change_anything(name):
    carry, shared = start(plan(name), task_of(name))
    xs = batches(3)
    xs["mask"] = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]], bool)
    other = {**xs, "batch.x": np.where(xs["mask"][..., None], xs["batch.x"], np.float32(7)),
             "batch.y": np.where(xs["mask"], xs["batch.y"], np.int32(0))}  # fmt: skip
    after = train(plan(name), carry, shared, xs)
    assert same_bytes(after, train(plan(name), carry, shared, other))
    assert after["metrics.examples"] == 7 and after["step"] == 3


@pytest.mark.parametrize("name", ON_POINTS)
def test_a_wholly_masked_step_is_as_if_it_were_not_there(name):
    carry, shared = start(plan(name), task_of(name))
    xs = batches(3)
    xs["mask"][1] = False
    idle = {**xs, "mask": np.zeros_like(xs["mask"])}
    assert same_bytes(carry, train(plan(name), carry, shared, idle))
    without = {k: v[[0, 2]] for k, v in xs.items()}
    assert same_bytes(train(plan(name), carry, shared, xs), train(plan(name), carry, shared, without))


@pytest.mark.parametrize("name", ON_POINTS)
def test_where_chunks_are_cut_does_not_matter(name):
    carry, shared = start(plan(name), task_of(name))
    xs = batches(6)
    whole = train(plan(name), carry, shared, xs)
    for cut in (2, 5):
        first = train(plan(name), carry, shared, {k: v[:cut] for k, v in xs.items()})
        assert same_bytes(whole, train(plan(name), first, shared, {k: v[cut:] for k, v in xs.items()}))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_chunk_is_the_optimizer_on_the_mean_of_what_is_not_masked(name):
    """The reference drops masked examples and lets optax step, with nothing of Covey's programs."""
    carry, shared = start(plan(name), MLP)
    xs = batches(4)
    xs["mask"][3, 2:] = False
    lr = float(shared["hyper.lr"])
    optimizer = local_optimizer(name, lr)
    params = {"hidden": {}, "output": {}}
    for key, value in initial_params(MLP, seed=3).items():
        layer, leaf = key.split("/")
        params[layer][leaf] = jnp.asarray(value)
    old, state = params, optimizer.init(params)

    def mean_loss(p, x, y):
        scores = jax.nn.log_softmax(tasks.logits(p, x))
        return -jnp.mean(scores[jnp.arange(len(y)), y])

    for x, y, mask in zip(xs["batch.x"], xs["batch.y"], xs["mask"], strict=True):
        updates, state = optimizer.update(jax.grad(mean_loss)(params, x[mask], y[mask]), state, params)
        params = optax.apply_updates(params, updates)
    after = train(plan(name), carry, shared, xs)
    totals = {f"totals.{k}": after[f"metrics.{k}"] for k in ("examples", "loss", "weight")}
    made = run_model(plan(name).graphs["finish"], {**after, **shared, **totals})
    assert set(made) == {f"model.{layer}/{leaf}" for layer in params for leaf in params[layer]}
    for key, delta in made.items():
        layer, leaf = key.removeprefix("model.").split("/")
        expected = np.asarray(params[layer][leaf] - old[layer][leaf])
        # Four steps of two layers, each with sums of at most 8 terms, forward and backward, and the division by a root.
        allowed = tolerance(4 * 2 * 2 * (8 + 20)) * np.abs(expected).max() + 4 * 1.2e-7 * np.abs(old[layer][leaf]).max()
        np.testing.assert_allclose(delta, expected, rtol=0, atol=allowed)


def test_a_gradient_graph_adds_the_sums_at_the_parameters_that_were_sent():
    carry, shared = start(plan("gradient"), MLP)
    xs = batches(3)
    at_once = {k: v.reshape(1, 12, *v.shape[2:]) for k, v in xs.items()}
    params = {k.removeprefix("params."): v for k, v in shared.items() if k.startswith("params.")}

    def total(flat):
        p = {"hidden": {k[7:]: v for k, v in flat.items() if k.startswith("hidden/")},
             "output": {k[7:]: v for k, v in flat.items() if k.startswith("output/")}}  # fmt: skip
        scores = jax.nn.log_softmax(tasks.logits(p, at_once["batch.x"][0]))
        return -jnp.sum(scores[jnp.arange(12), at_once["batch.y"][0]])

    expected = jax.grad(total)(params)
    after = train(plan("gradient"), carry, shared, xs)
    totals = {f"totals.{k}": after[f"metrics.{k}"] for k in ("examples", "loss", "weight")}
    made = run_model(plan("gradient").graphs["finish"], {**after, **shared, **totals})
    for key, value in expected.items():
        got = np.asarray(made[f"model.{key}"], np.float64)
        allowed = tolerance(12 + 2 * 2 * (8 + 20)) * np.abs(value).max()
        np.testing.assert_allclose(-got * 12, value, rtol=0, atol=allowed)  # it sends -g, the mean over 12 examples


def test_dropout_differs_from_step_to_step_and_from_key_to_key():
    carry, shared = start(plan("dropout"), DROPOUT)
    one = {k: np.repeat(v, 2, 0) for k, v in batches(1).items()}
    still = {**shared, "hyper.lr": np.float32(0)}
    first = train(plan("dropout"), carry, still, {k: v[:1] for k, v in one.items()})["metrics.loss"]
    both = train(plan("dropout"), carry, still, one)["metrics.loss"]
    other = {**still, "key": np.array([1, 3], np.uint32)}
    assert both != 2 * first
    assert train(plan("dropout"), carry, other, {k: v[:1] for k, v in one.items()})["metrics.loss"] != first


def test_nothing_is_dropped_in_evaluation():
    params = prefixed("params", initial_params(MLP, seed=3))
    batch = {k: v[0] for k, v in batches(1, batch_size=5).items()}
    batch["mask"] = np.ones(5, bool)
    metrics = {f"metrics.{m}": np.float32(0) for m in plan("sgd").manifest.metrics}
    with_dropout = run_model(plan("dropout").graphs["eval"], {**params, **metrics, **batch})
    without = run_model(plan("sgd").graphs["eval"], {**params, **metrics, **batch})
    assert all(with_dropout[k] == without[k] for k in without)


def test_evaluation_counts_what_is_not_masked():
    params = prefixed("params", initial_params(MLP, seed=3))
    batch = {k: v[0] for k, v in batches(1, batch_size=5).items()}
    batch["mask"] = np.array([1, 0, 1, 1, 0], bool)
    metrics = {f"metrics.{m}": np.float32(10) for m in plan("sgd").manifest.metrics}
    out = run_model(plan("sgd").graphs["eval"], {**params, **metrics, **batch})
    hidden = np.maximum(batch["batch.x"] @ params["params.hidden/w"] + params["params.hidden/b"], 0)
    right = np.argmax(hidden @ params["params.output/w"] + params["params.output/b"], 1) == batch["batch.y"]
    assert out["next.metrics.correct"] == 10 + np.sum(right & batch["mask"])
    assert out["next.metrics.examples"] == out["next.metrics.weight"] == 13


def test_a_prediction_is_for_one_example():
    params = prefixed("params", initial_params(MLP, seed=3))
    out = run_model(plan("sgd").graphs["predict"], {**params, "input.x": np.ones((1, 6), np.float32)})
    assert out["output.probabilities"].shape == (1, 3)
    np.testing.assert_allclose(out["output.probabilities"].sum(), 1, atol=tolerance(3))
    assert "predict" not in plan("dropout").graphs
