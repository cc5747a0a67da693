"""FedAvg in Covey's simulation: the device's and the server's own code, two workers. Takes its data itself."""

import contextlib
import dataclasses

from gate import Finished, Gate, arguments


def main():
    from covey.recipes.recipe import load_recipe
    from covey.simulation.report import versions
    from covey.simulation.run import Progress, SimulationOptions, simulate

    args = arguments()
    gate = Gate(warmup=2)
    source = f"mnist-{args.model}"
    settings = dataclasses.replace(load_recipe(source).settings, cohort=args.cohort)

    class Gated(Progress):
        def round(self, row):
            gate.round_done(60 * row.reported, versions())

    with contextlib.suppress(Finished):
        simulate(source, settings, SimulationOptions(rounds=10**6, workers=2, eval_every=10**6), Gated())


if __name__ == "__main__":
    main()
