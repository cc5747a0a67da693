"""The recipe ``shakespeare-lstm`` on the characters of COVEY_BENCH_DATA: as many for each device."""

import dataclasses
import os

import numpy as np

from covey.data.dataset import from_clients
from covey.recipes.recipe import load_recipe


def data(settings, seed):
    with np.load(os.environ["COVEY_BENCH_DATA"]) as archive:
        x, y = archive["x"].astype(np.int32), archive["y"].astype(np.int32)
    clients = {str(i): {"x": x[i], "y": y[i]} for i in range(len(x))}
    return from_clients("speeches", clients, {"0": clients["0"]})


recipe = dataclasses.replace(load_recipe("shakespeare-lstm"), name="lstm", data=data)
