"""``covey sweep``: simulate a recipe over a grid of settings."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.compare import print_comparison
from covey.cli.options import (
    json_option,
    population_options,
    recipe_argument,
    report_option,
    settings_from,
    split_options,
    training_options,
)
from covey.cli.output import StatusLine, percent, write_file, write_json
from covey.types.errors import UsageError

if TYPE_CHECKING:
    from covey.simulation.run import Progress
    from covey.simulation.sweep import Cell, SweepResult

__all__ = ["command"]


@click.command(
    "sweep",
    epilog="""\b
Examples:
  covey sweep mnist-2nn --grid lr=0.03,0.1,0.3 --grid algorithm=fedavg,fedprox --rounds 20 --out sweeps/first
  covey sweep mnist-2nn --grid up-mbit-per-s=0.5,2,8 --grid 'compression=float32,hd|eden:1' --out sweeps/network
  covey sweep mnist-2nn --grid 'algorithm=fedavg;fedadam:tau=1e-2,beta1=0.8' --grid seed=0,1,2 --out sweeps/second""",
)
@recipe_argument
@click.option("--grid", "axes", multiple=True, metavar="NAME=V,V", help="An axis; values with commas: separate by ;.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="A folder for each run goes here; the same command goes on with a sweep that was cut short.",
)
@click.option("--rounds", type=int, metavar="N", help="Of every run (10).")
@click.option("--target", type=float, metavar="ACC", help="Every run stops at this accuracy.")
@click.option("--seed", type=int, metavar="N", help="Of every run (0), unless the grid has seeds.")
@click.option("--workers", type=int, metavar="N", help="Processes.")
@click.option("--trainer", metavar="NAME", help="jax, jax-step, jax-loop or onnx.")
@click.option("--eval-every", type=int, metavar="K", help="Evaluate every K-th round (1).")
@click.option("--over-selection", type=float, metavar="F", help="How many times the cohort is selected (1).")
@population_options
@training_options
@report_option
@json_option
def command(
    recipe: str, axes: tuple[str, ...], out: Path, report_file: Path | None, json_file: str | None, **typed: Any
) -> None:
    """Simulate RECIPE once for every point of a grid, and print the results side by side.

    An axis of the grid is any setting, the seed, --over-selection, --report-timeout, or how devices behave. A run that
    fails is noted, and the sweep goes on. What had ended before is read, not run again.
    """
    from covey.recipes.recipe import load_recipe
    from covey.simulation.comparison import common_target, compare
    from covey.simulation.page import comparison_page, require_plots
    from covey.simulation.population import DevicePopulation
    from covey.simulation.run import SimulationOptions
    from covey.simulation.sweep import parse_grid, sweep

    if report_file is not None:
        require_plots()
    behaviour, run, values = split_options(typed)
    options = SimulationOptions(population=DevicePopulation(**behaviour), **run)
    cells, found = parse_grid(axes), load_recipe(recipe)
    if twice := {k for c in cells for k in c.values} & {*values, *behaviour, *run}:
        raise UsageError("--grid", expected="settings that no other option sets", got=min(twice))

    def settings_of(point: Any) -> Any:
        # An explicit None in the grid (a batch of everything) must not count as left out.
        settings = settings_from(found, {**values, **{k: v for k, v in point.items() if v is not None}})
        unset: dict[str, Any] = {k: None for k, v in point.items() if v is None}
        return dataclasses.replace(settings, **unset)

    shown = _Shown(len(cells), quiet=json_file == "-")
    try:
        results = sweep(recipe, settings_of, options, cells, out, shown.cell, shown.result)
    except KeyboardInterrupt:
        click.echo("\nthe same command goes on from here", err=True)
        raise
    ended = [r for r in results if r.report is not None]
    reports = [r.report for r in ended if r.report is not None]
    held_to = common_target(reports)
    rows = compare([r.cell.name for r in ended], reports, held_to)
    if report_file is not None and rows:
        write_file(report_file, comparison_page(rows, reports, held_to).encode(), f"--report {report_file}")
    failed = {r.cell.name: r.failed for r in results if r.failed}
    if json_file:
        write_json({"runs": rows, "failed": failed, "target": held_to}, json_file)
    if json_file != "-" and rows:
        click.echo("")
        print_comparison(sorted(rows, key=lambda r: -(r.best_accuracy or 0.0)), held_to)


class _Shown:
    """Says where a sweep stands."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total, self._quiet, self._status = total, quiet, StatusLine()

    def cell(self, number: int, cell: "Cell") -> "Progress":
        """Note that a cell runs."""
        from covey.simulation.run import Progress

        status, label = self._status, f"[{number + 1}/{self._total}] {cell.name}"

        class Shown(Progress):
            """Shows the newest round."""

            def round(self, row: Any) -> None:
                status.show(f"{label}: round {row.round}, accuracy {percent(row.accuracy)}")

        status.show(label)
        return Shown()

    def result(self, result: "SweepResult") -> None:
        """Note how a cell ended."""
        self._status.clear()
        if self._quiet:
            return
        if result.report is None:
            click.echo(f"{result.cell.name}: failed: {result.failed}")
            return
        best = max((r.accuracy for r in result.report.rounds if r.accuracy is not None), default=None)
        click.echo(f"{result.cell.name}: {len(result.report.rounds)} rounds, best {percent(best)}")
