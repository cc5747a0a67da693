"""How many rounds does Federated Averaging need where 1602.05629 says how many: tables 1 to 3 and figure 3?

``--table 1|2``: MNIST, 100 devices of 600 examples, IID or with two digits each; the 2NN to 97 %, the CNN to 99 %.
``--table 2 --model lstm``: Shakespeare by role, FedSGD for 300 rounds and then FedAvg to the best that it reached.
``--table 3``: CIFAR-10, 100 devices of 500 images, to --target. ``--table figure3``: the roles with one to twenty
passes between two rounds at one learning rate, for --rounds; `covey compare DIR/*/*` draws the curves.
Rounds are counted as in the paper: the curve is made monotone and its crossing of the target interpolated.

The learning rate of each row comes from the paper's kind of grid, in two stages. Candidates a factor of 10^(1/3) apart
run for 3 % of the row's most rounds, and the grid grows until its best is not at its edge; then the best one's
neighbours at 10^(1/6) and itself run for 8 %. The winner goes on from there to the target; nothing is run twice. A
trial's score is the least loss on the held-out examples: so early, accuracy may still be that of guessing the most
frequent class, and says nothing; and a mean over rounds would favour rates that are good at the very start.

All of it lives in --state: a folder for each run. The same command goes on where the last one stopped, whether it was
interrupted, killed, or out of its --budget-minutes; what is known is printed each time. A full table is hours of work.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fedavg_tables import MNIST, SHAKESPEARE, Row, figure_3, table_1, table_2, table_2_lstm, table_3
from benchmarks.report import Report
from covey.recipes.recipe import load_recipe
from covey.simulation.pool import available_cores
from covey.simulation.report import RoundRow
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.simulation.rundir import read_rows
from covey.simulation.target import target_round
from covey.types.errors import TrainingError

_COARSE, _FINE = 10 ** (1 / 3), 10 ** (1 / 6)
_COARSE_SHARE, _FINE_SHARE = 0.03, 0.08
_LEAST_TRIAL = 2
_FEDSGD_ROUNDS = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a row gave: the learning rate, the rounds to the target (or to the best), the best accuracy, the time.

    ``minutes`` are those of all its runs, the grid's too.
    """

    lr: float | None
    rounds: float | None
    accuracy: float | None
    minutes: float | None


class OutOfTime(Exception):
    """The budget is spent; every run is stored where it stands."""


class Study:
    """The runs of one row in one folder."""

    def __init__(self, row: Row, args: argparse.Namespace, until_s: float, report: Report) -> None:
        self._row, self._seed, self._workers = row, args.seed, args.workers
        self._folder: Path = args.state / f"{row.name}-seed{args.seed}"
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
        settings = dataclasses.replace(
            load_recipe(row.source.recipe).settings, algorithm=row.algorithm, partition=row.partition, lr=lr,
            num_clients=row.source.num_clients, cohort=row.cohort, epochs=row.epochs, batch_size=row.batch,
            lr_decay=1.0 if row.algorithm == "fedsgd" else row.source.decay,
        )  # fmt: skip
        options = SimulationOptions(
            rounds=rounds, target=row.target if to_target else None, seed=self._seed, eval_every=row.eval_every,
            workers=self._workers, out=out, resume=begun,
        )  # fmt: skip
        try:
            return simulate(row.source.recipe, settings, options, _Clock(self, lr)).rounds
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
        """Return minus a trial's least loss; minus infinity where it diverged."""
        try:
            return -min(r.loss for r in self.curve(lr, rounds) if r.loss is not None)
        except TrainingError:
            return -math.inf

    def rate(self) -> float:
        """Return the learning rate that the two stages choose, where the row has none."""
        if self._row.lr is not None:
            return self._row.lr
        least = max(_LEAST_TRIAL, self._row.eval_every)
        trial = [max(least, int(s * self._row.most_rounds)) for s in (_COARSE_SHARE, _FINE_SHARE)]
        middle = self._row.first_rate
        scores = {lr: self.score(lr, trial[0]) for lr in (middle / _COARSE, middle, middle * _COARSE)}
        while True:
            best = max(scores, key=lambda lr: (scores[lr], -lr))  # where all diverged, on to smaller ones
            beyond = {min(scores): best / _COARSE, max(scores): best * _COARSE}.get(best)
            if beyond is None:
                break
            scores[beyond] = self.score(beyond, trial[0])
        fine = {lr: self.score(lr, trial[1]) for lr in (best / _FINE, best, best * _FINE)}
        return max(fine, key=lambda lr: fine[lr])

    def reached(self, rows: Sequence[RoundRow]) -> float | None:
        """Return the round in which the target was crossed; None too where there is no target."""
        if self._row.target is None:
            return None
        points = [(r.round, r.accuracy) for r in rows if r.accuracy is not None]
        return target_round([n for n, _ in points], [a for _, a in points], self._row.target)

    def result(self) -> Result:
        """Return what the row gave."""
        row = self._row
        lr = self.rate()
        rows = self.curve(lr, row.most_rounds, to_target=row.target is not None)
        best, when = max(((r.accuracy, -r.round) for r in rows if r.accuracy is not None), default=(0.0, 0))
        runs = [read_rows(p.parent) for p in self._folder.glob("*/config.json")]
        minutes = sum(r.seconds for run in runs for r in run) / 60
        return Result(lr, self.reached(rows) if row.target is not None else -when, best, minutes)

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
    parser.add_argument("--table", choices=("1", "2", "3", "figure3"), default="2")
    parser.add_argument("--model", choices=("2nn", "cnn", "lstm"), default="cnn")
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="where every run is kept")
    parser.add_argument("--partition", choices=("iid", "two-class"), help="only these rows")
    parser.add_argument("--rows", metavar="E5B10,...", help="only these, and FedSGD (E1Binf) beside them without --lr")
    parser.add_argument("--fraction", type=float, default=0.1, metavar="C", help="of the roles (--model lstm)")
    parser.add_argument(
        "--target", type=float, default=0.80, metavar="ACC", help="of table 3: 0.80, 0.82, 0.85 or lower"
    )
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="of figure 3")
    parser.add_argument("--lr", type=float, metavar="X", help="this learning rate, and no grid")
    parser.add_argument("--budget-minutes", type=float, default=math.inf, metavar="M")
    parser.add_argument("--workers", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0)


def _chosen(args: argparse.Namespace) -> list[Row]:
    if args.quick:  # the small model and an easy target: whether it works, not what the paper says
        return [
            dataclasses.replace(r, source=MNIST["2nn"], target=0.85, paper=None, rounds=50)
            for r in table_2()
            if r.partition == "iid" and (r.epochs, r.batch) in ((1, None), (5, 10))
        ]
    if args.table == "figure3":
        return figure_3(args.fraction, args.rounds)
    if args.table == "3":
        return table_3(args.target)
    if args.model == "lstm":
        rows = table_2_lstm(args.fraction, _FEDSGD_ROUNDS)
    else:
        rows = table_1(args.model) if args.table == "1" else table_2()
    wanted = {*args.rows.split(","), *([] if args.lr else ["E1Binf"])} if args.rows else None
    found = [
        r
        for r in rows
        if args.partition in (None, r.partition) and (wanted is None or f"E{r.epochs}B{r.batch or 'inf'}" in wanted)
    ]
    if not found:
        raise SystemExit(f"no such rows: {args.rows}; a row is called E<epochs>B<batch>, as E5B10 or E1Binf")
    return [dataclasses.replace(r, lr=args.lr) for r in found]


def main() -> None:
    report = Report(__doc__, _configure)
    args = report.args
    if (args.table, args.model) in (("1", "lstm"), ("2", "2nn")):
        raise SystemExit(f"table {args.table} has no {args.model} here: --table 1 --model 2nn, --table 2 --model lstm")
    until_s = time.monotonic() + 60 * args.budget_minutes
    report.facts(
        table=args.table, seed=args.seed, state=args.state.name, budget_minutes=args.budget_minutes,
        workers=args.workers or available_cores(),
    )  # fmt: skip
    results: dict[Row, Result] = {}
    waiting: dict[Row, str] = {}
    rows = _chosen(args)
    best: float | None = None
    # FedSGD's rows are the longest: last, unless another row waits for them.
    for row in sorted(rows, key=lambda r: r.algorithm == "fedsgd" and r.target is not None):
        relative = row.target is None and row.algorithm == "fedavg" and args.table == "2"
        study = Study(dataclasses.replace(row, target=best) if relative else row, args, until_s, report)
        try:
            if relative and best is None:
                raise OutOfTime  # its target is what FedSGD reaches, which is not known yet
            results[row] = study.result()
            report.note(f"{row.name}: {results[row]}")
            best = results[row].accuracy
        except OutOfTime:
            waiting[row] = study.newest()
        except TrainingError as error:
            waiting[row] = f"diverged: {error}"
    _tabulate(report, rows, results)
    for row, where in waiting.items():
        report.note(f"not done: {row.name}: {where}")
    report.finish()


def _tabulate(report: Report, rows: Sequence[Row], results: Mapping[Row, Result]) -> None:
    base = {(r.partition, r.fraction): (results.get(r), r.paper) for r in rows if r.algorithm == "fedsgd"}
    lines = []
    for row in rows:
        sgd, paper_sgd = base.get((row.partition, row.fraction), (None, None))
        ours = results.get(row, Result(None, None, None, None))
        faster = _over(sgd.rounds if sgd else None, ours.rounds)
        beside = None if row.source is SHAKESPEARE else _over(ours.rounds, row.paper)
        lines.append(
            [row.name, row.updates, ours.lr, ours.rounds, faster, row.paper, _over(paper_sgd, row.paper), beside,
             ours.accuracy, ours.minutes]
        )  # fmt: skip
        promised = report.args.table in ("1", "2") and not report.args.quick
        if promised and row.algorithm == "fedavg" and ours.lr is not None:
            if row.source is SHAKESPEARE:
                report.goal(f"{row.name}: FedSGD's rounds over its own", faster, ">= 10", (faster or 0) >= 10)
            elif row.paper is not None:
                report.goal(f"{row.name}: rounds over the paper's", beside, "<= 1.3", (beside or math.inf) <= 1.3)
    columns = ["row", "u", "lr", "rounds", "speedup", "paper", "paper's", "ours/paper", "best accuracy", "minutes"]
    report.table(f"table {report.args.table}: rounds to the target", columns, lines)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


if __name__ == "__main__":
    main()
