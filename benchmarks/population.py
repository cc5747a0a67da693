"""Does a run with 1,000,000 registered devices, 1,000 of them a round, stay under 2 GB?

MNIST 2NN, 20 examples for each device, drawn when it is asked for; availability by the time of day, speeds and networks
that differ, dropouts, and 1.3 times the cohort selected. Memory is that of the whole run: the parent and its workers
together (shared pages counted once, where the system tells), sampled ten times a second.
"""

import argparse
import dataclasses
import threading
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Report
from covey.recipes.recipe import load_recipe
from covey.simulation.population import DevicePopulation
from covey.simulation.run import Progress, SimulationOptions, simulate

_GOAL_BYTES = 2 << 30
_EVERY_S = 0.1


class _Memory:
    """The most memory that this process and its children took together."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(_EVERY_S):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    full = process.memory_full_info()
                    total += getattr(full, "pss", full.rss)
                except psutil.Error:
                    continue  # it ended in between
            self.peak_bytes = max(self.peak_bytes, total)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)


def main() -> None:
    report = Report(__doc__, _configure)
    args = report.args
    cohort = args.cohort // 10 if args.quick else args.cohort
    recipe = load_recipe("mnist-2nn")
    settings = dataclasses.replace(recipe.settings, partition="resample:20", num_clients=args.devices, cohort=cohort)
    population = DevicePopulation(
        dropout=0.08,
        speed_spread=0.5,
        seconds_per_step=1.0,
        down_mbit_per_s=10.0,
        up_mbit_per_s=2.0,
        network_spread=0.8,
        availability="diurnal:swing=4,hours=8",
    )
    options = SimulationOptions(rounds=args.rounds, over_selection=1.3, population=population)
    report.facts(model="mnist-2nn", devices=args.devices, cohort=cohort, rounds=args.rounds, examples_each=20)

    class Note(Progress):
        """Says how far it is."""

        def round(self, row: Any) -> None:
            """Say a round."""
            report.note(
                f"round {row.round}: {row.reported}/{row.selected} devices, accuracy {row.accuracy:.3f}, "
                f"{row.seconds:.1f} s ({row.at_s:,.0f} virtual), peak so far {memory.peak_bytes / 1e6:,.0f} MB"
            )

    with _Memory() as memory:
        run = simulate("mnist-2nn", settings, options, Note())
    status = Path("/proc/self/status")
    own = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
    rows = [
        ["peak of all processes, MB", memory.peak_bytes / 1e6],
        ["peak of the parent, MB", int(own[0].split()[1]) / 1e3 if own else None],
        ["sessions a second", sum(r.reported for r in run.rounds) / sum(r.seconds for r in run.rounds)],
        ["seconds", run.seconds],
    ]
    report.table("one run", ["", "value"], rows)
    holds = memory.peak_bytes < _GOAL_BYTES
    report.goal("peak memory, GB", memory.peak_bytes / 1e9, f"below {_GOAL_BYTES / 1e9:.2f}", holds)
    report.finish()


if __name__ == "__main__":
    main()
