import dataclasses
import functools

import numpy as np
import pytest

from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.lowering.check import tolerance
from covey.plans.plan import unpack_plan
from covey.plans.task import PlanOptions
from covey.recipes.prepare import local_halves
from covey.recipes.recipe import load_recipe
from covey.simulation.jax_trainer import JaxTrainer
from covey.types.errors import TooFewExamplesError, TrainingError

SEED = bytes(range(32))


@functools.cache
def world(path, algorithm, optimizer):
    recipe = load_recipe(path)
    settings = dataclasses.replace(recipe.settings, algorithm=algorithm, optimizer=optimizer)
    task, local = recipe.task(), local_halves(settings, recipe.data(settings, 0))
    options = PlanOptions(batch_size=4, epochs=2 if algorithm == "fedavg" else 1, chunk_steps=3)
    plan = unpack_plan(build_plan(task, local, options))
    return plan, JaxTrainer(task, local), initial_params(task, 0), recipe.data(settings, 0)


@pytest.mark.parametrize(
    ("algorithm", "optimizer"), [("fedavg", "sgd"), ("fedavg", "momentum"), ("fedavg", "adam"), ("fedsgd", "sgd")]
)
def test_both_trainers_compute_the_same_update(tiny, algorithm, optimizer):
    plan, jax_trainer, params, dataset = world(tiny, algorithm, optimizer)
    for client in ("client-0", "client-5", "client-11"):  # 3 examples: one partial batch; 14: a partial chunk
        job = TrainingJob(plan, 0, params, {}, {"lr": 0.01} if algorithm == "fedavg" else {}, SEED)
        a, b = (t.run(job, dataset.train(client)) for t in (jax_trainer, OnnxTrainer()))
        assert (a.weight, a.num_examples, a.num_steps) == (b.weight, b.num_examples, b.num_steps)
        assert a.segments.keys() == b.segments.keys()
        for name, values in a.segments.items():
            # About 40 roundings in a step, relative to the largest value; Adam divides by a root of tiny squares,
            # which loses half of the digits in the first steps.
            bound = tolerance(40 * a.num_steps) * max(1.0, np.abs(values).max())
            bound = np.sqrt(bound) * 1e-2 if optimizer == "adam" else bound
            assert np.abs(values - b.segments[name]).max() <= bound, (client, name)


def test_the_cut_into_chunks_changes_no_bit(tiny):
    plan, trainer, params, dataset = world(tiny, "fedavg", "sgd")
    phase = plan.manifest.phases[0]
    results = []
    for chunk_steps in (1, 3, 100):
        fields = {f: getattr(plan.manifest, f) for f in plan.manifest.__struct_fields__}
        fields["phases"] = (
            type(phase)(**{f: getattr(phase, f) for f in phase.__struct_fields__} | {"chunk_steps": chunk_steps}),
        )
        cut = dataclasses.replace(plan, manifest=type(plan.manifest)(**fields))
        results.append(trainer.run(TrainingJob(cut, 0, params, {}, {}, SEED), dataset.train("client-9")))
    first = results[0].segments["model"].tobytes()
    assert all(r.segments["model"].tobytes() == first for r in results)


def test_steps_outside_a_loop_give_what_the_loop_gives(tiny):
    plan, trainer, params, dataset = world(tiny, "fedavg", "sgd")
    job = TrainingJob(plan, 0, params, {}, {}, SEED)
    looped = trainer.run(job, dataset.train("client-7")).segments["model"]
    recipe = load_recipe(tiny)
    local = local_halves(recipe.settings, dataset)
    stepwise = JaxTrainer(recipe.task(), local, stepwise=True)
    stepped = stepwise.run(job, dataset.train("client-7")).segments["model"]
    assert np.abs(looped - stepped).max() <= tolerance(40 * 6) * max(1.0, np.abs(looped).max())


def test_divergence_and_empty_devices_are_errors(tiny):
    plan, trainer, params, dataset = world(tiny, "fedavg", "sgd")
    bad = {k: v.copy() for k, v in dataset.train("client-3").items()}
    bad["x"][0, 0] = np.nan
    job = TrainingJob(plan, 0, params, {}, {}, SEED)
    with pytest.raises(TrainingError, match="NaN"):
        trainer.run(job, bad)
    with pytest.raises(TooFewExamplesError):
        trainer.run(job, {k: v[:0] for k, v in bad.items()})
