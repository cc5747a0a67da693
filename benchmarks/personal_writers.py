"""MNIST by writer for the benchmark of personalization: the 2NN, each writer training on the train part only."""

import dataclasses

from benchmarks.train_part import TrainPart
from covey.recipes.mnist import RECIPES

_BASE = RECIPES["mnist-2nn"]
_SETTINGS = dataclasses.replace(
    _BASE.settings, partition="writer", num_clients=None, cohort=20, eval_batch_size=25, chunk_steps=10
)

recipe = dataclasses.replace(
    _BASE, name="writers", settings=_SETTINGS, data=lambda settings, seed: TrainPart(_BASE.data(settings, seed), 50)
)
