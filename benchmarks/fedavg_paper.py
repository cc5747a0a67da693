"""How many rounds does Federated Averaging need where 1602.05629 says how many: tables 1 and 2, row by row?

MNIST, 100 devices of 600 examples, IID or with two digits each; the 2NN to 97 %, the CNN to 99 %. Rounds are counted as
in the paper: the curve is made monotone and its crossing of the target interpolated.

The learning rate of each row comes from the paper's kind of grid, in two stages. Candidates a factor of 10^(1/3) apart
run for 5 % of the row's most rounds, and the grid grows until its best is not at its edge; then the best one's
neighbours at 10^(1/6) and itself run for 10 %. The winner goes on from there to the target; nothing is run twice. A
trial's score is the mean of its monotone curve.

All of it lives in --state: a folder for each run. The same command goes on where the last one stopped, whether it was
interrupted, killed, or out of its --budget-minutes; what is known is printed each time. A full table is hours of work.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Report
from covey.recipes.recipe import load_recipe
from covey.simulation.report import RoundRow
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.simulation.rundir import read_rows
from covey.simulation.target import monotone, target_round
from covey.types.errors import TrainingError

_COARSE, _FINE = 10 ** (1 / 3), 10 ** (1 / 6)
_COARSE_SHARE, _FINE_SHARE = 0.05, 0.10
_LEAST_TRIAL = 2
_MOST = 2.5
"""A row may take so many times the paper's rounds before it counts as not reached."""
_DEVICES = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One cell of a table. ``batch`` None is infinity; ``epochs`` 1 with it is FedSGD."""

    recipe: str
    partition: str
    fraction: float
    epochs: int
    batch: int | None
    target: float
    paper: float | None
    unknown_most: int = 5000

    @property
    def algorithm(self) -> str:
        """FedSGD is one full gradient; everything else averages."""
        return "fedsgd" if (self.epochs, self.batch) == (1, None) else "fedavg"

    @property
    def name(self) -> str:
        """The row's name, and its folder's."""
        batch = "inf" if self.batch is None else self.batch
        return f"{self.recipe}-{self.partition}-C{self.fraction:g}-E{self.epochs}-B{batch}"

    @property
    def updates(self) -> float:
        """The paper's u: the expected number of local updates of a device in a round."""
        each = 60_000 / _DEVICES
        return self.epochs * (1 if self.batch is None else each / self.batch)

    @property
    def most_rounds(self) -> int:
        """After so many rounds the row counts as not reached."""
        return self.unknown_most if self.paper is None else math.ceil(_MOST * self.paper)

    @property
    def first_rates(self) -> tuple[float, ...]:
        """Where the grid begins: FedSGD takes larger rates, and so do fewer updates."""
        middle = 0.215 if self.algorithm == "fedsgd" else 0.1
        return (middle / _COARSE, middle, middle * _COARSE)


def _table_1(model: str) -> list[Row]:
    """Table 1: rounds by C; the 2NN with E = 1, the CNN with E = 5."""
    recipe, epochs, target = ("mnist-2nn", 1, 0.97) if model == "2nn" else ("mnist-cnn", 5, 0.99)
    # For each C: IID with B infinite and 10, then two digits each with B infinite and 10.
    figures: dict[float, tuple[int | None, ...]] = {
        0.0: (1455, 316, 4278, 3275), 0.1: (1474, 87, 1796, 664), 0.2: (1658, 77, 1528, 619),
        0.5: (None, 75, None, 443), 1.0: (None, 70, None, 380),
    }  # fmt: skip
    if model == "cnn":
        figures = {
            0.0: (387, 50, 1181, 956), 0.1: (339, 18, 1100, 206), 0.2: (337, 18, 978, 200), 0.5: (164, 18, 1067, 261),
            1.0: (246, 16, None, 97),
        }  # fmt: skip
    cells = [(p, b) for p in ("iid", "two-class") for b in (None, 10)]
    return [
        Row(recipe, partition, c, epochs, batch, target, paper)
        for c, papers in figures.items()
        for (partition, batch), paper in zip(cells, papers, strict=True)
    ]


def _table_2() -> list[Row]:
    """Table 2, its half about the CNN: rounds to 99 % at C = 0.1."""
    figures = [
        (1, None, 626, 483), (5, None, 179, 1000), (1, 50, 65, 600), (20, None, 234, 672), (1, 10, 34, 350),
        (5, 50, 29, 334), (20, 50, 32, 426), (5, 10, 20, 229), (20, 10, 18, 173),
    ]  # fmt: skip
    return [
        Row("mnist-cnn", partition, 0.1, epochs, batch, 0.99, paper)
        for partition, column in (("iid", 2), ("two-class", 3))
        for epochs, batch, *_, paper in ((f[0], f[1], f[column]) for f in figures)
    ]


class OutOfTime(Exception):
    """The budget is spent; every run is stored where it stands."""


class Study:
    """The runs of one row in one folder."""

    def __init__(self, row: Row, folder: Path, seed: int, until_s: float, report: Report) -> None:
        self._row, self._folder, self._seed = row, folder, seed
        self._until_s, self._report = until_s, report

    def curve(self, lr: float, rounds: int, *, to_target: bool = False) -> list[RoundRow]:
        """Return the first ``rounds`` rounds at a learning rate, running those that are not there yet.

        Raises:
            OutOfTime: the budget is spent.
            TrainingError: it diverged.
        """
        row, out = self._row, self._folder / f"lr={lr:.4g}"
        begun = (out / "config.json").exists()
        known = read_rows(out) if begun else []
        if len(known) >= rounds or (to_target and self.reached(known)):
            return known[:rounds]
        if (out / "diverged").exists():
            raise TrainingError("trial", expected="a finite loss", got="one that diverged before")
        if time.monotonic() >= self._until_s:
            raise OutOfTime
        recipe = load_recipe(row.recipe)
        settings = dataclasses.replace(
            recipe.settings, algorithm=row.algorithm, partition=row.partition, num_clients=_DEVICES, lr=lr,
            cohort=max(1, round(row.fraction * _DEVICES)), epochs=row.epochs, batch_size=row.batch,
        )  # fmt: skip
        # Rounds of a thousand-round curve are evaluated now and then: interpolation makes up for it.
        every = 5 if row.most_rounds > 1000 else 1
        options = SimulationOptions(
            rounds=rounds, target=row.target if to_target else None, seed=self._seed, eval_every=every, out=out,
            resume=begun,
        )  # fmt: skip
        try:
            return simulate(row.recipe, settings, options, _Clock(self, lr)).rounds
        except TrainingError:
            (out / "diverged").touch()
            raise

    def tick(self, lr: float, row: RoundRow) -> None:
        """Note a round, and stop where the budget is spent."""
        if row.round % 50 == 0:
            self._report.note(f"{self._row.name}, lr {lr:.4g}: round {row.round}, accuracy {row.accuracy or 0:.4f}")
        if time.monotonic() >= self._until_s:
            raise OutOfTime

    def score(self, lr: float, rounds: int) -> float:
        """Return the mean of a trial's monotone curve; less than nothing where it diverged."""
        try:
            accuracies = [r.accuracy for r in self.curve(lr, rounds) if r.accuracy is not None]
        except TrainingError:
            return -1.0
        return sum(monotone(accuracies)) / max(1, len(accuracies))

    def rate(self) -> float:
        """Return the learning rate that the two stages choose."""
        trial = [max(_LEAST_TRIAL, int(s * self._row.most_rounds)) for s in (_COARSE_SHARE, _FINE_SHARE)]
        scores = {lr: self.score(lr, trial[0]) for lr in self._row.first_rates}
        while True:
            best = max(scores, key=lambda lr: scores[lr])
            beyond = {min(scores): best / _COARSE, max(scores): best * _COARSE}.get(best)
            if beyond is None or scores[best] <= 0:
                break
            scores[beyond] = self.score(beyond, trial[0])
        fine = {lr: self.score(lr, trial[1]) for lr in (best / _FINE, best, best * _FINE)}
        return max(fine, key=lambda lr: fine[lr])

    def reached(self, rows: Sequence[RoundRow]) -> float | None:
        """Return the round in which the target was crossed."""
        points = [(r.round, r.accuracy) for r in rows if r.accuracy is not None]
        return target_round([n for n, _ in points], [a for _, a in points], self._row.target)

    def result(self) -> tuple[float, float | None, float]:
        """Return the learning rate, the rounds to the target, and the best accuracy."""
        lr = self.rate()
        rows = self.curve(lr, self._row.most_rounds, to_target=True)
        return lr, self.reached(rows), max((r.accuracy or 0.0 for r in rows), default=0.0)

    def newest(self) -> str:
        """Return in words how far the row is."""
        runs = {p.parent.name: read_rows(p.parent) for p in self._folder.glob("*/config.json")}
        if not runs:
            return "not begun"
        name, rows = max(runs.items(), key=lambda item: len(item[1]))
        best = max((r.accuracy or 0.0 for r in rows), default=0.0)
        return f"{len(runs)} runs, {sum(map(len, runs.values()))} rounds; the longest {name}: {len(rows)}, {best:.4f}"


class _Clock(Progress):
    def __init__(self, study: Study, lr: float) -> None:
        self._study, self._lr = study, lr

    def round(self, row: Any) -> None:
        """Pass a round on."""
        self._study.tick(self._lr, row)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", choices=("1", "2"), default="2")
    parser.add_argument("--model", choices=("2nn", "cnn"), default="cnn", help="of table 1")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where every run is kept")
    parser.add_argument("--partition", choices=("iid", "two-class"), help="only these rows")
    parser.add_argument("--rows", metavar="E5B10,...", help="only these, and FedSGD (E1Binf) beside them")
    parser.add_argument("--budget-minutes", type=float, default=math.inf, metavar="M")
    parser.add_argument("--seed", type=int, default=0)


def _chosen(args: argparse.Namespace) -> list[Row]:
    rows = _table_1(args.model) if args.table == "1" else _table_2()
    if args.quick:  # the small model and an easy target: whether it works, not what the paper says
        rows = [dataclasses.replace(r, recipe="mnist-2nn", target=0.85, paper=None, unknown_most=50) for r in rows]
    wanted = {"E5B10", "E1Binf"} if args.quick else None
    if args.rows:
        wanted = {*args.rows.split(","), "E1Binf"}
    rows = [r for r in rows if args.partition in (None, r.partition)]
    found = [r for r in rows if wanted is None or f"E{r.epochs}B{r.batch or 'inf'}" in wanted]
    if not found:
        raise SystemExit(f"no such rows: {args.rows}; a row is called E<epochs>B<batch>, as E5B10 or E1Binf")
    return [r for r in found if r.partition == "iid"] if args.quick else found


def main() -> None:
    report = Report(__doc__, _configure)
    args = report.args
    until_s = time.monotonic() + 60 * args.budget_minutes
    report.facts(table=args.table, seed=args.seed, state=args.state.name, budget_minutes=args.budget_minutes)
    results: dict[Row, tuple[float, float | None, float]] = {}
    waiting: dict[Row, str] = {}
    rows = _chosen(args)
    for row in rows:
        study = Study(row, args.state / f"{row.name}-seed{args.seed}", args.seed, until_s, report)
        try:
            results[row] = study.result()
            report.note(f"{row.name}: {results[row]}")
        except OutOfTime:
            waiting[row] = study.newest()
        except TrainingError as error:
            waiting[row] = f"diverged: {error}"
    base = {
        (r.partition, r.fraction): (results.get(r, (0, None, 0))[1], r.paper) for r in rows if r.algorithm == "fedsgd"
    }
    lines = []
    for row in rows:
        ours_sgd, paper_sgd = base.get((row.partition, row.fraction), (None, None))
        lr, ours, best = results.get(row, (None, None, None))
        lines.append(
            [row.name, row.updates, lr, ours, _times(ours_sgd, ours), row.paper, _times(paper_sgd, row.paper),
             None if ours is None or row.paper is None else ours / row.paper, best]
        )  # fmt: skip
    columns = ["row", "u", "lr", "rounds", "speedup", "paper", "paper's", "ours/paper", "best accuracy"]
    report.table(f"table {args.table}: rounds to the target", columns, lines)
    for row, where in waiting.items():
        report.note(f"not done: {row.name}: {where}")
    report.finish()


def _times(base: float | None, rounds: float | None) -> float | None:
    return None if base is None or rounds is None else base / rounds


if __name__ == "__main__":
    main()
