"""``covey simulate``: train a recipe with the real device and server code, in virtual time, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.options import json_option, privacy_option, recipe_argument, settings_from, training_options
from covey.cli.output import StatusLine, bytes_text, percent, print_guarantee, write_json

if TYPE_CHECKING:
    from covey.simulation.report import RoundRow, RunReport

__all__ = ["command"]


@click.command(
    "simulate",
    epilog="""\b
Examples:
  covey simulate mnist-2nn --rounds 20
  covey simulate mnist-2nn --partition two-class --epochs 5 --target 0.97
  covey simulate mnist-2nn --cohort 50 --privacy gaussian:clip=0.5,epsilon=8
  covey simulate mnist-2nn --compression 'hd|eden:0.1' --rounds 50
  covey simulate ./my_recipe.py --cohort 50 --out runs/first --json -""",
)
@recipe_argument
@click.option("--rounds", type=int, metavar="N", help="Committed rounds (10; with --target as many as it takes).")
@training_options
@click.option("--target", type=float, metavar="ACC", help="Stop at this accuracy, a fraction such as 0.97.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same bits.")
@click.option("--workers", type=int, metavar="N", help="Processes; one for each core unless told. Changes no result.")
@click.option("--trainer", metavar="NAME", help="jax (fast) or onnx (what a device runs).")
@click.option("--eval-every", type=int, default=1, show_default=True, metavar="K", help="Evaluate every K-th round.")
@click.option("--dropout", type=float, default=0.0, metavar="P", help="Probability that a selected device gives up.")
@click.option("--over-selection", type=float, default=1.0, metavar="F", help="How many times the cohort is selected.")
@privacy_option
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="RUNDIR", help="Keep the run here.")
@json_option
def command(
    recipe: str,
    rounds: int | None,
    target: float | None,
    seed: int,
    workers: int | None,
    eval_every: int,
    dropout: float,
    over_selection: float,
    privacy: str | None,
    out: Path | None,
    json_file: str | None,
    **training: Any,
) -> None:
    """Simulate a federation on this machine.

    RECIPE is keyboard, mnist-2nn, mnist-cnn, shakespeare-lstm, or a path to your own Python file that defines
    `recipe`. Devices and server run the code that they run in production; only time and the network are virtual.
    """
    from covey.recipes.recipe import load_recipe
    from covey.simulation.population import DevicePopulation
    from covey.simulation.run import SimulationOptions, simulate

    settings = settings_from(load_recipe(recipe), training)
    options = SimulationOptions(
        rounds=rounds,
        target=target,
        seed=seed,
        workers=workers,
        eval_every=eval_every,
        over_selection=over_selection,
        population=DevicePopulation(dropout=dropout),
        privacy=privacy,
        out=out,
    )
    report = simulate(recipe, settings, options, _progress(quiet=json_file == "-"))
    if json_file:
        write_json(report, json_file)
    if json_file != "-":
        _print_end(report, out)


def _progress(*, quiet: bool) -> Any:
    from covey.simulation.run import Progress

    status = StatusLine()

    class Shown(Progress):
        """Prints a line for each round; what is under way is shown on the terminal only."""

        def building(self) -> None:
            status.show("building and checking the plan (once; it is cached) ...")

        def starting(self, num_devices: int, num_workers: int, prepared: Any) -> None:
            status.clear()
            if quiet:
                return
            manifest = prepared.plan.manifest
            num_parameters = sum(t.size for t in manifest.params)
            codecs = {s.codec for p in manifest.phases for s in p.segments} - {"float32"}
            click.echo(
                f"{manifest.task}: {manifest.algorithm.name}, {num_parameters:,} parameters, {num_devices} devices, "
                f"{''.join(f'updates by {c}, ' for c in sorted(codecs))}"
                f"{num_workers} worker{'s' * (num_workers > 1)}, plan {prepared.plan.hash[:12]}"
                f"{'' if prepared.cached else ' (built)'}"
            )
            click.echo("round  accuracy     loss  reported  lost        up      down  seconds")
            status.show("starting workers ...")

        def promised(self, guarantee: Any) -> None:
            status.clear()
            if not quiet:
                print_guarantee(guarantee)

        def session(self, done: int, total: int) -> None:
            status.bar("devices", done, total)

        def round(self, row: "RoundRow") -> None:
            status.clear()
            if not quiet:
                loss = "-" if row.loss is None else f"{row.loss:.4f}"
                click.echo(
                    f"{row.round:5d}  {percent(row.accuracy):>8}  {loss:>7}  {row.reported:3d}/{row.selected:<4d}  "
                    f"{row.lost:4d}  {bytes_text(row.bytes_up):>8}  {bytes_text(row.bytes_down):>8}  {row.seconds:7.2f}"
                )

    return Shown()


def _print_end(report: "RunReport", out: Path | None) -> None:
    click.echo(
        f"{len(report.rounds)} rounds, {report.client_steps:,} local steps in {report.seconds:.1f} s; "
        f"up {bytes_text(report.bytes_up)}, down {bytes_text(report.bytes_down)}; mode {report.mode}"
    )
    if report.target is not None:
        reached = "not reached" if report.target_round is None else f"reached in round {report.target_round:.1f}"
        click.echo(f"target {percent(report.target)}: {reached}")
    if report.privacy is not None:
        click.echo(f"privacy: {report.privacy.headline}")
    click.echo(f"checkpoint {report.checkpoint[:12]} (equal bits for an equal seed, at any number of workers)")
    if out is not None:
        click.echo(f"kept in {out}: plan.covey, rounds.jsonl, checkpoint.params, report.json")
