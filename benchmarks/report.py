"""What every benchmark shares: its arguments, the lines about this machine, tables, goals, and the JSON."""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Goal", "Report", "hardware", "relative_spread"]

_PACKAGES = ("covey", "numpy", "onnxruntime", "jax", "jaxlib")


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
    """One thing that the project promised.

    Attributes:
        name: of the goal.
        value: what was measured; None where nothing was.
        goal: the promise, as ``>= 4``.
        holds: whether it is kept; None where that cannot be told from this run.
        reason: why it cannot be told, or what else to know about the value.
    """

    name: str
    value: float | None
    goal: str
    holds: bool | None
    reason: str = ""

    def line(self) -> str:
        """Return one line for people."""
        verdict = {True: "holds", False: "MISSED", None: "cannot be told"}[self.holds]
        value = "-" if self.value is None else f"{self.value:.3g}"
        return f"{verdict:15}{self.name}: {value} (goal {self.goal}){'; ' + self.reason if self.reason else ''}"


class Report:
    """A benchmark's run: prints as it goes, and writes everything as JSON at the end."""

    def __init__(self, module_doc: str | None, configure: Callable[[argparse.ArgumentParser], None] | None = None):
        """Parse the command line and print the question and the machine.

        Args:
            module_doc: the benchmark's docstring; its first line is the question.
            configure: adds the benchmark's own arguments.
        """
        text = module_doc or ""
        self.question = text.splitlines()[0]
        parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="smaller, for a look: ends within 50 s on two cores")
        parser.add_argument("--json", metavar="FILE", help="write the results as JSON; - is stdout, after the text")
        if configure is not None:
            configure(parser)
        self.args = parser.parse_args()
        self._started = time.monotonic()
        self._versions: dict[str, str] = versions()
        self._tables: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        self.goals: list[Goal] = []
        self._hardware = hardware()
        print(self.question)
        print(f"hardware: {self._hardware}")
        print(f"versions: {_listed(self._versions)}{' (quick)' if self.args.quick else ''}", flush=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def facts(self, **facts: Any) -> None:
        """Print and keep how it was measured: seeds, repeats, sizes."""
        self._facts |= facts
        print("; ".join(f"{k.replace('_', ' ')}: {v}" for k, v in facts.items()), flush=True)

    def note(self, text: str) -> None:
        """Print a line about what is going on; it is not kept."""
        print(f"  {text}", flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print and keep a table."""
        self._tables.append({"title": title, "columns": list(columns), "rows": [list(r) for r in rows]})
        cells = [[str(c) for c in columns], *([_cell(c) for c in row] for row in rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        print(f"\n{title}")
        for row in cells:
            first, *others = (
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            print("  " + "  ".join([first, *others]).rstrip())
        print(flush=True)

    def goal(self, name: str, value: float | None, goal: str, holds: bool | None, reason: str = "") -> None:
        """Print and keep a goal."""
        self.goals.append(Goal(name, value, goal, holds, reason))
        print(self.goals[-1].line(), flush=True)

    def finish(self) -> None:
        """Write the JSON, if it was asked for."""
        print(f"({self.elapsed_s:.0f} s)", flush=True)
        result = {
            "question": self.question,
            "quick": self.args.quick,
            "hardware": self._hardware,
            "versions": self._versions,
            "measured": self._facts,
            "tables": self._tables,
            "goals": [dataclasses.asdict(g) for g in self.goals],
            "seconds": self.elapsed_s,
        }
        if self.args.json == "-":
            print(json.dumps(result, indent=1))
        elif self.args.json:
            Path(self.args.json).write_text(json.dumps(result, indent=1) + "\n")


def relative_spread(values: Sequence[float]) -> str:
    """Return half the range between the quartiles, relative to the median, as text."""
    if len(values) < 2:
        return "-"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"±{50 * (high - low) / statistics.median(values):.0f} %"


def hardware() -> str:
    """Return processor, cores, memory and system in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, load {load}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of what computes here."""
    out = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _listed(items: Mapping[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in items.items())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
