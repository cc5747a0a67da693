"""Plans of every algorithm for one small task, built once."""

import dataclasses
import functools
from pathlib import Path

from covey.algorithms.registry import parse_algorithm, server_half
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.manifest import PrivacyTerms
from covey.plans.plan import unpack_plan
from covey.recipes.prepare import local_halves, plan_options
from covey.recipes.recipe import load_recipe
from covey.simulation.jax_trainer import JaxTrainer

TINY = str(Path(__file__).parents[1] / "simulation" / "tiny.py")


@functools.cache
def world(algorithm, optimizer="sgd", **changes):
    """Return (plan, server half, JAX trainer, first parameters, data set)."""
    recipe = load_recipe(TINY)
    settings = dataclasses.replace(
        recipe.settings, algorithm=algorithm, optimizer=optimizer, **{"epochs": 2, **changes}
    )
    dataset, task = recipe.data(settings, 0), recipe.task()
    halves = local_halves(settings, dataset)
    options = plan_options(settings, PrivacyTerms(min_cohort=1, n_max=100), dataset)
    plan = unpack_plan(build_plan(task, halves, options))
    ref = plan.manifest.algorithm
    assert ref.name == parse_algorithm(algorithm).name
    return plan, server_half(ref.name, ref.settings), JaxTrainer(task, halves), initial_params(task, 0), dataset
