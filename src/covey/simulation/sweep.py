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
from covey.simulation.population import DevicePopulation
from covey.simulation.report import RunReport
from covey.simulation.run import Progress, SimulationOptions, check_asked, simulate
from covey.simulation.rundir import RunConfig, read_config, read_report
from covey.types.errors import ResumeError, TrainingError, UsageError

__all__ = ["Cell", "SweepResult", "parse_grid", "sweep"]

_ALIASES = {"batch": "batch_size", "clients": "num_clients", "report_timeout": "report_timeout_s"}
_SETTINGS: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(Settings)}
_BEHAVIOUR: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(DevicePopulation)}
_RUN: dict[str, Any] = {"seed": int, "over_selection": float, "report_timeout_s": float}
_AXES = {**_SETTINGS, **_RUN, **_BEHAVIOUR}


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One point of a grid: what is set, by name: settings, options of the run, and how devices behave."""

    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """A name for its folder, with what is set in it."""
        parts = (f"{k}={'inf' if v is None else v}" for k, v in self.values.items())
        return re.sub(r"[^A-Za-z0-9.=_-]+", "_", ",".join(parts).replace(",", "__"))[:150]

    @property
    def settings(self) -> dict[str, Any]:
        """What is set of the recipe's settings."""
        return {k: v for k, v in self.values.items() if k in _SETTINGS}

    def options(self, options: SimulationOptions, folder: Path) -> SimulationOptions:
        """Return the options of its run in ``folder``. Raises UsageError: devices cannot behave so."""
        run, behaviour = ({k: v for k, v in self.values.items() if k in names} for names in (_RUN, _BEHAVIOUR))
        population, out = dataclasses.replace(options.population, **behaviour), folder / self.name
        begun = (out / "config.json").exists()
        return dataclasses.replace(options, population=population, out=out, resume=begun, **run)


@dataclasses.dataclass(frozen=True, slots=True)
class SweepResult:
    """How a cell ended: with a report, or with why it failed."""

    cell: Cell
    report: RunReport | None
    failed: str = ""


def parse_grid(axes: Sequence[str]) -> list[Cell]:
    """Return the cells of ``name=value,value`` for each axis; values that hold commas are separated by semicolons.

    Raises:
        UsageError: no such setting (with the near misses), a value that it cannot have, or an axis or a value twice.
    """
    found: dict[str, list[Any]] = {}
    for axis in axes:
        typed, equals, rest = axis.partition("=")
        name = typed.replace("-", "_")
        name = _ALIASES.get(name, name)
        if name not in _AXES or not equals:
            near = difflib.get_close_matches(name, _AXES, n=2) if name not in _AXES else []
            raise UsageError(
                f"--grid {axis}",
                expected="NAME=VALUE,VALUE with a setting's name",
                got=typed if equals else axis,
                hint=f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(_AXES)}",
            )
        if name in found:
            raise UsageError("--grid", expected="each setting once", got=f"{typed} twice")
        values = rest.split(";") if ";" in rest else rest.split(",")
        found[name] = [_value(axis, v, _AXES[name]) for v in values if v]
        if not found[name] or len(set(found[name])) < len(found[name]):
            raise UsageError(f"--grid {axis}", expected="values, each once", got=rest or "none")
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

    Every cell is checked before the first runs, as far as that needs no data. A cell that fails is noted, and the sweep
    goes on.

    Args:
        source: a recipe's name or path.
        settings_of: the settings of a cell's :attr:`Cell.settings`.
        options: of every run; its ``out`` is the cell's.
        cells: of the grid.
        folder: gets a folder for each cell. A cell that was cut short goes on where it stood.
        on_cell: is told of each cell before it runs, and returns who is told of its rounds.
        on_result: is told how it ended, also where it had ended before.

    Raises:
        UsageError: a cell that cannot be run.
        ResumeError: a cell's folder holds a run of another configuration.
    """
    runs = [(cell, settings_of(cell.settings), cell.options(options, folder)) for cell in cells]
    for _, settings, own in runs:
        check_asked(settings, own)
    results = []
    for number, (cell, settings, own) in enumerate(runs):
        result = _finished(source, settings, own, cell) if own.resume else None
        if result is None:
            try:
                report = simulate(source, settings, own, on_cell(number, cell))
                result = SweepResult(cell, report)
            except (TrainingError, UsageError) as error:
                result = SweepResult(cell, None, str(error))
        on_result(result)
        results.append(result)
    return results


def _finished(source: str, settings: Settings, options: SimulationOptions, cell: Cell) -> SweepResult | None:
    """Return the result of a cell that ended before; None where it has to go on."""
    out = options.out
    assert out is not None, "a cell has its folder"
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
