"""Runs over a grid of settings, each in a folder of its own, so that a sweep can be resumed."""

import dataclasses
import difflib
import itertools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.recipes.recipe import Settings
from covey.simulation.report import RunReport
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.simulation.rundir import RunConfig, read_config, read_report
from covey.types.errors import ResumeError, TrainingError, UsageError

__all__ = ["Cell", "SweepResult", "parse_grid", "sweep"]

_ALIASES = {"batch": "batch_size", "clients": "num_clients"}


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid: what is set, by name; ``seed`` is one of the run's, the rest are settings."""

    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """A name for its folder, with what is set in it."""
        parts = (f"{k}={'inf' if v is None else v}" for k, v in self.values.items())
        return re.sub(r"[^A-Za-z0-9.=_-]+", "_", ",".join(parts).replace(",", "__"))[:150]


@dataclasses.dataclass(frozen=True, slots=True)
class SweepResult:
    """How a cell ended: with a report, or with why training failed."""

    cell: Cell
    report: RunReport | None
    failed: str = ""


def parse_grid(axes: Sequence[str]) -> list[Cell]:
    """Return the cells of ``name=value,value`` for each axis; values that hold commas are separated by semicolons.

    Raises:
        UsageError: no such setting (with the near misses), a value that it cannot have, or an axis twice.
    """
    types = {f.name: f.type for f in dataclasses.fields(Settings)} | {"seed": int}
    found: dict[str, list[Any]] = {}
    for axis in axes:
        typed, equals, rest = axis.partition("=")
        name = _ALIASES.get(typed, typed.replace("-", "_"))
        if name not in types or not equals or not rest:
            near = difflib.get_close_matches(name, types, n=2)
            raise UsageError(
                f"--grid {axis}",
                expected="NAME=VALUE,VALUE with a setting's name",
                got=typed if equals else axis,
                hint=f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(types)}",
            )
        if name in found:
            raise UsageError("--grid", expected="each setting once", got=f"{typed} twice")
        values = rest.split(";") if ";" in rest else rest.split(",")
        found[name] = [_value(axis, v, types[name]) for v in values if v]
    if not found:
        raise UsageError("--grid", expected="at least one NAME=VALUE,VALUE", got="none")
    return [Cell(dict(zip(found, point, strict=True))) for point in itertools.product(*found.values())]


def sweep(
    source: str,
    settings_of: Callable[[Mapping[str, Any]], Settings],
    options: SimulationOptions,
    cells: Sequence[Cell],
    folder: Path,
    on_cell: Callable[[int, Cell], Progress],
    on_result: Callable[[SweepResult], None],
) -> list[SweepResult]:
    """Run every cell that has not ended yet, and return all results in the order of the grid.

    Args:
        source: a recipe's name or path.
        settings_of: the settings of a cell's values.
        options: of every run; its ``out`` is the cell's.
        cells: of the grid.
        folder: gets a folder for each cell. A cell that was cut short goes on where it stood.
        on_cell: is told of each cell before it runs, and returns who is told of its rounds.
        on_result: is told how it ended, also where it had ended before.

    Raises:
        ResumeError: a cell's folder holds a run of another configuration.
    """
    results = []
    for number, cell in enumerate(cells):
        out = folder / cell.name
        values = {k: v for k, v in cell.values.items() if k != "seed"}
        seed = cell.values.get("seed", options.seed)
        begun = (out / "config.json").exists()
        own = dataclasses.replace(options, out=out, resume=begun, seed=seed)
        settings = settings_of(values)
        result = _finished(source, settings, own, cell, out) if begun else None
        if result is None:
            try:
                report = simulate(source, settings, own, on_cell(number, cell))
                result = SweepResult(cell, report)
            except TrainingError as error:
                result = SweepResult(cell, None, str(error))
        on_result(result)
        results.append(result)
    return results


def _finished(source: str, settings: Settings, options: SimulationOptions, cell: Cell, out: Path) -> SweepResult | None:
    """Return the result of a cell that ended before; None where it has to go on."""
    before, rounds = read_config(out), options.rounds
    asked = RunConfig.of(source, dataclasses.asdict(settings), options.deciding(), before.plan, before.asked)
    before.check_same(asked, out)
    try:
        report = read_report(out)
    except ResumeError:
        return None
    longer = rounds is not None and len(report.rounds) < rounds and report.target_round is None
    return None if longer and not report.stopped else SweepResult(cell, report)


def _value(axis: str, text: str, wanted: Any) -> Any:
    if text in ("inf", "none"):
        if type(None) in typing.get_args(wanted):
            return None
        raise UsageError(f"--grid {axis}", expected="a value", got=text)
    kind = next((k for k in (typing.get_args(wanted) or (wanted,)) if k is not type(None)), str)
    try:
        return kind(text)
    except ValueError as e:
        raise UsageError(f"--grid {axis}", expected=f"values of type {kind.__name__}", got=text) from e
