"""Learning curves with cumulative upload bytes: run once, kept, and read again by the next run of the benchmark.

A curve is one simulated federation: real device sessions, real encoded bodies, the real aggregator. It is kept under a
name that covers everything that it depends on (recipe, settings, spec, seed, rounds, and the sources of the packages
that a curve can depend on), so that a benchmark that ran out of its budget goes on where it stopped.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import covey
from covey.recipes.recipe import load_recipe, recipe_source
from covey.simulation.report import RoundRow
from covey.simulation.run import Progress, SimulationOptions, simulate

__all__ = ["Curve", "CurveStore", "bytes_to", "reached_round"]

_SOURCES = (
    "types",
    "wire",
    "plans",
    "algorithms",
    "compression",
    "privacy",
    "device",
    "server",
    "simulation",
    "models",
    "recipes",
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy and cumulative upload bytes after each round; epsilon of all rounds where there is noise."""

    accuracies: list[float]
    bytes_up: list[int]
    seconds: float
    epsilon: float | None = None
    cached: bool = False


def reached_round(curve: Curve, target: float) -> int | None:
    """Return the first round (from 1) whose accuracy is at least ``target``; None where there is none."""
    return next((i + 1 for i, a in enumerate(curve.accuracies) if a >= target), None)


def bytes_to(curve: Curve, target: float) -> int | None:
    """Return the cumulative upload bytes at that round."""
    at = reached_round(curve, target)
    return None if at is None else curve.bytes_up[at - 1]


class _OutOfTime(Exception):
    pass


class _Until(Progress):
    """Ends a run that no budget is left for; nothing is kept of it."""

    def __init__(self, end_at_s: float) -> None:
        self._end_at_s = end_at_s

    def round(self, row: RoundRow) -> None:
        if time.monotonic() > self._end_at_s:
            raise _OutOfTime


class CurveStore:
    """Curves by what they depend on, in a folder.

    Args:
        folder: where they are kept; made when it is needed.
        end_at_s: the monotonic time after which no run is begun, and a run under way is dropped.
    """

    def __init__(self, folder: Path, end_at_s: float) -> None:
        self._folder = folder
        self._end_at_s = end_at_s
        self._sources = _sources_digest()

    def curve(
        self,
        recipe: str,
        spec: str,
        seed: int,
        rounds: int,
        target: float | None = None,
        privacy: str | None = None,
        **settings: Any,
    ) -> Curve | None:
        """Return a curve, from the folder or by running it now; None where the budget is used up.

        Args:
            recipe: what is trained.
            spec: its compression.
            seed: of the run.
            rounds: the most rounds.
            target: stop at this accuracy; None runs all rounds.
            privacy: a SPEC of differential privacy.
            **settings: replace the recipe's own.
        """
        what = {"recipe": recipe, "spec": spec, "seed": seed, "rounds": rounds, "target": target, **settings}
        if privacy is not None:
            what["privacy"] = privacy
        sources = self._sources
        if recipe.endswith(".py"):
            sources += hashlib.sha256(recipe_source(recipe)).hexdigest()
        name = hashlib.sha256(json.dumps([what, sources], sort_keys=True).encode()).hexdigest()[:24]
        file = self._folder / f"{name}.json"
        if file.exists():
            kept = json.loads(file.read_text())
            return Curve(kept["accuracies"], kept["bytes_up"], kept["seconds"], kept["epsilon"], cached=True)
        if time.monotonic() > self._end_at_s:
            return None
        chosen = dataclasses.replace(load_recipe(recipe).settings, compression=spec, **settings)
        options = SimulationOptions(rounds=rounds, target=target, seed=seed, privacy=privacy)
        started_s = time.monotonic()
        try:
            report = simulate(recipe, chosen, options, _Until(self._end_at_s))
        except _OutOfTime:
            return None
        curve = Curve(
            [float(r.accuracy or 0.0) for r in report.rounds],
            _cumulative([r.bytes_up for r in report.rounds]),
            time.monotonic() - started_s,
            None if report.privacy is None else report.privacy.epsilon,
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"what": what, **dataclasses.asdict(curve)}) + "\n")
        return curve


def _cumulative(values: Sequence[int]) -> list[int]:
    out, total = [], 0
    for value in values:
        total += value
        out.append(total)
    return out


def _sources_digest() -> str:
    digest, root = hashlib.sha256(), Path(covey.__file__).parent
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
