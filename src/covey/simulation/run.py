"""Simulate a recipe: prepare its plan, start workers, run rounds, evaluate, report."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from covey.data.dataset import FederatedDataset
from covey.device.files import storage_errors
from covey.plans.manifest import PrivacyTerms
from covey.privacy.guarantee import Guarantee
from covey.privacy.spec import is_noised
from covey.recipes.prepare import Prepared, prepare
from covey.recipes.recipe import Recipe, Settings, load_recipe
from covey.server.coordinator import RoundSettings
from covey.simulation.federation import Federation, owner_key, public_bytes
from covey.simulation.messages import Evaluate, Setup
from covey.simulation.pool import WorkerPool, available_cores
from covey.simulation.population import DevicePopulation
from covey.simulation.promise import Promise, promised
from covey.simulation.report import RoundRow, RunReport, accuracy_and_loss, versions
from covey.simulation.target import target_round
from covey.types.errors import UsageError
from covey.types.tensors import sha256_hex

__all__ = ["Progress", "SimulationOptions", "simulate"]

_NUM_PIECES = 16
_MOST_ROUNDS_TO_TARGET = 2000
_DEFAULT_ROUNDS = 10


@dataclasses.dataclass(frozen=True, slots=True)
class SimulationOptions:
    """How a run goes, besides the recipe's settings.

    Attributes:
        rounds: committed rounds; None: 10, or with a target as many as it takes, at most 2,000.
        target: stop once this accuracy (a fraction) is reached.
        seed: of the data's partition, the first parameters, the cohorts and every device's shuffling.
        workers: processes; None: one for each core. It changes the speed and no bit of the result.
        eval_every: evaluate every so many rounds, and after the last.
        over_selection: how many times the cohort is selected.
        population: how fast devices are, and how often one drops out.
        privacy: a SPEC of differential privacy, as ``docs/privacy.md`` describes; None: none.
        out: a folder for the plan, the rounds, the last checkpoint and the report; None: nothing is written.
    """

    rounds: int | None = None
    target: float | None = None
    seed: int = 0
    workers: int | None = None
    eval_every: int = 1
    over_selection: float = 1.0
    population: DevicePopulation = dataclasses.field(default_factory=DevicePopulation)
    privacy: str | None = None
    out: Path | None = None


class Progress:
    """What happens during a run; override what is of interest."""

    def promised(self, guarantee: Guarantee) -> None:
        """Note what the run's differential privacy promises, before it starts."""

    def building(self) -> None:
        """Note that a plan is being traced, lowered and checked: some seconds."""

    def starting(self, num_devices: int, num_workers: int, prepared: Prepared) -> None:
        """Note that the plan is there and the workers are starting."""

    def session(self, done: int, total: int) -> None:
        """Note how many of a round's sessions are done."""

    def round(self, row: RoundRow) -> None:
        """Note a committed round, evaluated if it was its turn."""


def simulate(
    source: str,
    settings: Settings | None = None,
    options: SimulationOptions | None = None,
    progress: Progress | None = None,
) -> RunReport:
    """Simulate a federation with the device's and the server's own code, and return its report.

    Args:
        source: a recipe's name, or a path to a Python file that defines ``recipe``.
        settings: how it is trained; None: the recipe's own settings.
        options: how the run goes.
        progress: is told what happens.

    Raises:
        UsageError: settings or options that cannot work.
        DatasetMissingError: the recipe's data are not on this machine.
        PlanBuildError: the recipe's task cannot become a plan.
        PrivacyError: a promise that cannot be kept, or beyond its budget.
        TrainingError: training diverged; names the round and the cause.
    """
    started_s = time.monotonic()
    options, progress = options or SimulationOptions(), progress or Progress()
    recipe = load_recipe(source)
    settings = settings or recipe.settings
    dataset = recipe.data(settings, options.seed)
    rounds = _rounds(settings, options, len(dataset.client_ids))
    terms = PrivacyTerms(min_cohort=1, n_max=max(10_000, rounds.num_selected))
    built = _built_with(recipe, settings)
    prepared = prepare(
        recipe, source, built, terms, dataset,
        seed=options.seed, noised=is_noised(options.privacy), on_build=progress.building,
    )  # fmt: skip
    num_devices = len(dataset.client_ids)
    prepared, promise = promised(prepared, options.privacy, rounds, _num_rounds(options), num_devices)
    if promise is not None:
        progress.promised(promise.before())
    if settings.algorithm == "fedavg":
        rounds = dataclasses.replace(rounds, hyper={"lr": settings.lr})
    num_workers = available_cores() if options.workers is None else options.workers
    num_workers = min(num_workers, rounds.num_selected)
    key = public_bytes(owner_key(options.seed))
    setup = Setup(source, dataclasses.replace(built, trainer=settings.trainer), options.seed, prepared.plan_bytes, key)
    with WorkerPool(num_workers, setup) as pool, contextlib.closing(_RunDir(options.out, prepared)) as run_dir:
        progress.starting(len(dataset.client_ids), num_workers, prepared)
        held_out = _pieces(dataset, prepared.plan.manifest.eval_batch_size)
        pool.ready()
        federation = Federation(
            prepared.plan,
            prepared.plan_bytes,
            prepared.checkpoint,
            [dataset.num_examples(c) for c in dataset.client_ids],
            rounds,
            pool,
            seed=options.seed,
            population=options.population,
            on_session=progress.session,
        )
        rows = _run(federation, pool, options, held_out, progress, run_dir, started_s)
        report = _report(source, settings, options, prepared, federation, rows, started_s, promise)
        run_dir.finish(report, federation.checkpoint)
    return report


def _report(
    source: str,
    settings: Settings,
    options: SimulationOptions,
    prepared: Prepared,
    federation: Federation,
    rows: list[RoundRow],
    started_s: float,
    promise: Promise | None,
) -> RunReport:
    evaluated = [(r.round, r.accuracy) for r in rows if r.accuracy is not None]
    reached = None
    if options.target is not None:
        reached = target_round([n for n, _ in evaluated], [a for _, a in evaluated], options.target)
    return RunReport(
        recipe=source,
        algorithm=settings.algorithm,
        seed=options.seed,
        mode=prepared.plan.manifest.privacy.mode,
        settings=dataclasses.asdict(settings),
        versions=versions(),
        plan=prepared.plan.hash,
        checkpoint=sha256_hex(federation.checkpoint),
        rounds=rows,
        target=options.target,
        target_round=reached,
        client_steps=federation.num_steps,
        seconds=time.monotonic() - started_s,
        bytes_up=sum(r.bytes_up for r in rows),
        bytes_down=sum(r.bytes_down for r in rows),
        privacy=None if promise is None else promise.after(federation.storage),
    )


def _run(
    federation: Federation,
    pool: WorkerPool,
    options: SimulationOptions,
    held_out: list[tuple[int, int]],
    progress: Progress,
    run_dir: "_RunDir",
    started_s: float,
) -> list[RoundRow]:
    rows: list[RoundRow] = []
    last = _num_rounds(options)
    before_s = started_s
    while len(rows) < last:
        summary = federation.next_round()
        accuracy = loss = None
        if summary.round % options.eval_every == 0 or summary.round == last:
            accuracy, loss = _evaluate(pool, federation.checkpoint, held_out)
        now_s = time.monotonic()
        row = RoundRow(
            round=summary.round,
            accuracy=accuracy,
            loss=loss,
            bytes_up=summary.bytes_up,
            bytes_down=summary.bytes_down,
            selected=summary.selected,
            reported=summary.reported,
            lost=summary.lost,
            seconds=now_s - before_s,
        )
        before_s = now_s
        rows.append(row)
        run_dir.add(row)
        progress.round(row)
        if options.target is not None and accuracy is not None and accuracy >= options.target:
            break
    return rows


def _evaluate(pool: WorkerPool, params: bytes, held_out: list[tuple[int, int]]) -> tuple[float | None, float | None]:
    """Evaluate on the held-out examples of all. The pieces are fixed and added in order: the same bits anywhere."""
    sums: dict[str, float] = {}
    if not held_out:
        return None, None
    answers = dict(pool.scattered([Evaluate(params, *piece) for piece in held_out]))
    for index in sorted(answers):
        for name, value in answers[index].items():
            sums[name] = sums.get(name, 0.0) + value
    return accuracy_and_loss(sums)


def _pieces(dataset: FederatedDataset, batch_size: int) -> list[tuple[int, int]]:
    """Cut the held-out examples into pieces of whole batches."""
    pooled = dataset.pooled_test()
    count = len(next(iter(pooled.values()))) if pooled else 0
    size = -(-count // (_NUM_PIECES * batch_size)) * batch_size
    return [(start, min(start + size, count)) for start in range(0, count, size)] if count else []


def _built_with(recipe: Recipe, settings: Settings) -> Settings:
    """Return the settings that the plan is built with: the recipe's own learning rate where a round can set another.

    A sweep over learning rates then needs one plan only.
    """
    own = recipe.settings.lr
    if settings.algorithm == "fedavg" and own / 1000 <= settings.lr <= own * 1000:
        return dataclasses.replace(settings, lr=own)
    return settings


def _num_rounds(options: SimulationOptions) -> int:
    if options.rounds is not None:
        return options.rounds
    return _DEFAULT_ROUNDS if options.target is None else _MOST_ROUNDS_TO_TARGET


def _rounds(settings: Settings, options: SimulationOptions, num_devices: int) -> RoundSettings:
    checks: list[tuple[bool, str, str, Any]] = [
        (_num_rounds(options) >= 1, "--rounds", "at least 1", options.rounds),
        (settings.cohort >= 1, "--cohort", "at least 1", settings.cohort),
        (options.workers is None or options.workers >= 1, "--workers", "at least 1", options.workers),
        (options.eval_every >= 1, "--eval-every", "at least 1", options.eval_every),
        (settings.lr > 0, "--lr", "above 0", settings.lr),
        (settings.epochs >= 1, "--epochs", "at least 1", settings.epochs),
        (settings.batch_size is None or settings.batch_size >= 1, "--batch", "at least 1, or inf", settings.batch_size),
        (options.target is None or 0 < options.target <= 1, "--target", "a fraction, as 0.97", options.target),
        (settings.trainer in ("jax", "onnx"), "--trainer", "jax or onnx", settings.trainer),
    ]
    for ok, flag, expected, got in checks:
        if not ok:
            raise UsageError(flag, expected=expected, got=str(got))
    rounds = RoundSettings(goal=settings.cohort, over_selection=options.over_selection)
    if rounds.num_selected > num_devices:
        raise UsageError(
            "--cohort",
            expected=f"at most the {num_devices} devices of the data set",
            got=str(rounds.num_selected),
            hint="a smaller cohort, or more devices (--clients)",
        )
    return rounds


class _RunDir:
    """The folder of a run, or none. Rounds are written as they happen: a run that is cut short leaves its curve."""

    def __init__(self, folder: Path | None, prepared: Prepared) -> None:
        self._folder = folder
        self._rounds: BinaryIO | None = None
        if folder is not None:
            with storage_errors(f"--out {folder}"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "plan.covey").write_bytes(prepared.plan_bytes)
                self._rounds = (folder / "rounds.jsonl").open("wb", buffering=0)

    def add(self, row: RoundRow) -> None:
        if self._rounds is not None:
            with storage_errors(f"--out {self._folder}"):
                self._rounds.write(msgspec.json.encode(row) + b"\n")

    def finish(self, report: RunReport, checkpoint: bytes) -> None:
        if self._folder is not None:
            with storage_errors(f"--out {self._folder}"):
                (self._folder / "checkpoint.params").write_bytes(checkpoint)
                (self._folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))

    def close(self) -> None:
        if self._rounds is not None:
            self._rounds.close()
