"""FedAvg in Covey's simulation: the device's and the server's own code, two workers.

Takes the images itself; the characters, as many for each device, are those that the others get.
"""

import contextlib
import dataclasses
import os
from pathlib import Path

import numpy as np
from gate import Finished, Gate, arguments


def main():
    from covey.recipes.recipe import load_recipe
    from covey.simulation.report import versions
    from covey.simulation.run import Progress, SimulationOptions, simulate

    args = arguments()
    gate = Gate(warmup=2)
    source = f"mnist-{args.model}"
    if args.model == "lstm":
        os.environ["COVEY_BENCH_DATA"] = args.data  # the workers load the recipe too
        source = str(Path(__file__).with_name("lstm_recipe.py"))
    with np.load(args.data) as archive:
        steps = -(-archive["y"].shape[1] // 10)
    settings = dataclasses.replace(load_recipe(source).settings, cohort=args.cohort)

    class Gated(Progress):
        def round(self, row):
            gate.round_done(row.reported * steps, versions())

    with contextlib.suppress(Finished):
        simulate(source, settings, SimulationOptions(rounds=10**6, workers=2, eval_every=10**6), Gated())


if __name__ == "__main__":
    main()
