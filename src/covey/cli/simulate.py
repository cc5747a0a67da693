"""``covey simulate``: train a recipe with the real device and server code, in virtual time, on this machine."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.options import (
    json_option,
    population_options,
    privacy_option,
    report_option,
    settings_from,
    split_options,
    training_options,
)
from covey.cli.output import StatusLine, bytes_text, percent, print_guarantee, print_table, write_file, write_json
from covey.types.errors import UsageError

if TYPE_CHECKING:
    from covey.recipes.recipe import Settings
    from covey.simulation.report import RoundRow, RunReport
    from covey.simulation.run import SimulationOptions

__all__ = ["command"]

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(
    "simulate",
    epilog="""\b
Examples:
  covey simulate mnist-2nn --rounds 20
  covey simulate mnist-2nn --partition two-class --epochs 5 --target 0.97 --report out.html
  covey simulate mnist-2nn --algorithm fedadam:tau=1e-2 --server-lr 0.03
  covey simulate mnist-2nn --partition resample:20 --clients 1000000 --cohort 1000 --availability diurnal
  covey simulate mnist-2nn --up-mbit-per-s 1 --down-mbit-per-s 10 --network-spread 1 --compression 'hd|eden:1'
  covey simulate mnist-2nn --cohort 50 --privacy gaussian:clip=0.5,epsilon=8
  covey simulate ./my_recipe.py --cohort 50 --out runs/first --json -
  covey simulate --resume runs/first --rounds 100""",
)
@click.argument("recipe", metavar="[RECIPE]", required=False)
@click.option("--rounds", type=int, metavar="N", help="Committed rounds (10; with --target as many as it takes).")
@training_options
@click.option("--target", type=float, metavar="ACC", help="Stop at this accuracy, a fraction such as 0.97.")
@click.option("--seed", type=int, metavar="N", help="Same seed, same bits (0).")
@click.option("--workers", type=int, metavar="N", help="Processes; one for each core unless told. Changes no result.")
@click.option("--trainer", metavar="NAME", help="jax, jax-step, jax-loop (fast) or onnx (what a device runs).")
@click.option("--eval-every", type=int, metavar="K", help="Evaluate every K-th round (1).")
@click.option("--over-selection", type=float, metavar="F", help="How many times the cohort is selected (1).")
@population_options
@privacy_option
@click.option("--out", type=_FOLDER, metavar="RUNDIR", help="Keep the run here; it can be resumed.")
@click.option(
    "--resume", type=_FOLDER, metavar="RUNDIR", help="Go on with a run that was kept; same bits as in one go."
)
@click.option("--allow-divergence", is_flag=True, help="Go on where training diverges.")
@click.option("--calibrate", is_flag=True, help="Measure the trainers on this recipe, suggest one, and end.")
@report_option
@json_option
def command(
    recipe: str | None,
    resume: Path | None,
    calibrate: bool,
    report_file: Path | None,
    json_file: str | None,
    **typed: Any,
) -> None:
    """Simulate a federation on this machine.

    RECIPE is keyboard, mnist-2nn, mnist-cnn, cifar10-cnn, shakespeare-lstm, or a path to your own Python file that
    defines `recipe`. Devices and server run the code that they run in production; only the network and time are
    virtual.
    """
    from covey.simulation.run import simulate

    if report_file is not None:
        from covey.simulation.page import require_plots

        require_plots()  # before the work, not after it
    source, settings, options = _asked(recipe, resume, typed)
    if calibrate:
        _calibrate(source, settings, options.seed, json_file)
        return
    options = dataclasses.replace(options, device_accuracy=report_file is not None)
    try:
        report = simulate(source, settings, options, _progress(quiet=json_file == "-"))
    except KeyboardInterrupt:
        if options.out is not None:
            click.echo(f"\n`covey simulate --resume {options.out}` goes on from here", err=True)
        raise
    if json_file:
        write_json(report, json_file)
    if report_file is not None:
        from covey.simulation.page import run_page

        write_file(report_file, run_page(report).encode(), f"--report {report_file}")
    if json_file != "-":
        _print_end(report, options.out)


def _asked(recipe: str | None, resume: Path | None, typed: dict[str, Any]) -> "tuple[str, Settings, SimulationOptions]":
    """Return what to run: the recipe's own values, or those of the run to resume, and what was typed in their place."""
    from covey.recipes.recipe import load_recipe
    from covey.simulation.resume import resumed
    from covey.simulation.run import SimulationOptions

    behaviour, run, values = split_options(typed)
    if resume is None:
        if recipe is None:
            raise UsageError("RECIPE", expected="a recipe, or --resume RUNDIR", got="neither", hint="covey simulate -h")
        found, options = load_recipe(recipe), SimulationOptions()
    else:
        if "out" in run:
            raise UsageError("--out", expected="--resume alone, which names the run's folder", got="both")
        before, settings, options = resumed(resume)
        # The run's own learning rate stays, whatever the recipe would choose.
        found = dataclasses.replace(load_recipe(recipe or before), settings=settings, lrs={})
        recipe = recipe or before
    options = dataclasses.replace(options, population=dataclasses.replace(options.population, **behaviour), **run)
    return recipe, settings_from(found, values), options


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
    from covey.simulation.report import time_shares

    click.echo(
        f"{len(report.rounds)} rounds, {report.client_steps:,} local steps in {report.seconds:.1f} s; "
        f"up {bytes_text(report.bytes_up)}, down {bytes_text(report.bytes_down)}; mode {report.mode}"
    )
    if report.target is not None:
        reached = "not reached"
        if report.target_round is not None and report.target_bytes is not None and report.target_s is not None:
            reached = (
                f"reached in round {report.target_round:.1f}, after {bytes_text(report.target_bytes)} and "
                f"{report.target_s:,.0f} virtual seconds"
            )
        click.echo(f"target {percent(report.target)}: {reached}")
    if shares := time_shares(report.device_s):
        spent = ", ".join(f"{kind} {percent(share)}" for kind, share in shares.items() if share)
        click.echo(f"virtual time {report.rounds[-1].at_s if report.rounds else 0:,.0f} s; the devices' time: {spent}")
    if report.stopped:
        click.echo(f"stopped early: {report.stopped}")
    if report.privacy is not None:
        click.echo(f"privacy: {report.privacy.headline}")
    click.echo(f"checkpoint {report.checkpoint[:12]} (equal bits for an equal seed, at any number of workers)")
    if out is not None:
        click.echo(f"kept in {out}: plan.covey, rounds.jsonl, checkpoint.params, report.json")


def _calibrate(source: str, settings: "Settings", seed: int, json_file: str | None) -> None:
    from covey.simulation.calibration import calibrate

    status = StatusLine()
    result = calibrate(source, settings, seed=seed, on_trainer=lambda name: status.show(f"measuring {name} ..."))
    status.clear()
    if json_file:
        write_json(result, json_file)
    if json_file == "-":
        return
    rows = [["trainer", "steps/s", "first step", ""]]
    for m in result.measured:
        if m.failed:
            rows.append([m.trainer, "-", "-", m.failed])
        else:
            rows.append([m.trainer, f"{m.steps_per_s:,.0f}", f"{m.first_s:.1f} s", m.summary])
    print_table(rows, right=(1, 2))
    click.echo(f"suggested: --trainer {result.suggested}{result.note}")
