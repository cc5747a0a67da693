"""The keyboard recipe for the benchmark of personalization: 100 roles, each training on its train part only."""

import dataclasses

from benchmarks.train_part import TrainPart
from covey.recipes.keyboard import RECIPES

_BASE = RECIPES["keyboard"]
_SETTINGS = dataclasses.replace(_BASE.settings, num_clients=100, cohort=10)

recipe = dataclasses.replace(
    _BASE, name="roles", settings=_SETTINGS, data=lambda settings, seed: TrainPart(_BASE.data(settings, seed), 100)
)
