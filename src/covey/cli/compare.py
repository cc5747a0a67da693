"""``covey compare``: several runs that ``covey simulate --out`` kept, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from covey.cli.options import json_option, report_option
from covey.cli.output import bytes_text, percent, print_table, write_file, write_json
from covey.types.errors import UsageError

if TYPE_CHECKING:
    from covey.simulation.comparison import ComparedRun

__all__ = ["command", "print_comparison"]


@click.command(
    "compare",
    epilog="""\b
Examples:
  covey compare runs/fedavg runs/scaffold
  covey compare runs/* --target 0.95 --report side-by-side.html""",
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--target", type=float, metavar="ACC", help="The accuracy that all are held to; else the runs' own.")
@report_option
@json_option
def command(runs: tuple[Path, ...], target: float | None, report_file: Path | None, json_file: str | None) -> None:
    """Compare runs: rounds, bytes and virtual time to a target, and the best accuracy of each.

    The target is crossed where the monotone curve crosses it, interpolated between evaluations.
    """
    from covey.simulation.comparison import common_target, compare
    from covey.simulation.rundir import read_report

    if target is not None and not 0 < target <= 1:
        raise UsageError("--target", expected="a fraction, as 0.97", got=f"{target:g}")
    reports = [read_report(run) for run in runs]
    names = _names(runs)
    held_to = common_target(reports) if target is None else target
    rows = compare(names, reports, held_to)
    if report_file is not None:
        from covey.simulation.page import comparison_page

        write_file(report_file, comparison_page(rows, reports, held_to).encode(), f"--report {report_file}")
    if json_file:
        write_json(rows, json_file)
    if json_file != "-":
        print_comparison(rows, held_to)


def print_comparison(rows: "Sequence[ComparedRun]", target: float | None) -> None:
    """Print the table of a comparison, with where the devices' time went where it was not training alone."""
    from covey.simulation.report import time_shares

    differs = [k for k in rows[0].differs if k != "algorithm"]
    to = [] if target is None else [f"rounds to {percent(target)}", "bytes to", "virtual s to"]
    shares = [time_shares(run.device_s) for run in rows]
    kinds = [k for k in ("training", "network", "waiting", "lost") if any(_share(s, k) for s in shares)]
    table = [["run", "algorithm", *differs, "best", "rounds", "bytes", *to, *kinds]]
    for run, spent in zip(rows, shares, strict=True):
        cells = [percent(run.best_accuracy), str(run.rounds), bytes_text(run.bytes)]
        if target is not None:
            cells.append("-" if run.target_round is None else f"{run.target_round:.1f}")
            cells.append("-" if run.target_bytes is None else bytes_text(run.target_bytes))
            cells.append("-" if run.target_s is None else f"{run.target_s:,.0f}")
        cells += [percent(_share(spent, k)) for k in kinds]
        table.append([run.name, run.algorithm, *(_cell(run.differs[k]) for k in differs), *cells])
    print_table(table, right=range(2 + len(differs), len(table[0])))


def _share(shares: Mapping[str, float], kind: str) -> float | None:
    """Return the part of the devices' time that a kind took; None where nobody measured more than training."""
    if not shares:
        return None
    return shares["download"] + shares["upload"] if kind == "network" else shares[kind]


def _cell(value: object) -> str:
    return "-" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the folders' own names, or where two are alike their paths."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]
