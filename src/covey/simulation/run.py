"""Simulate a recipe: prepare its plan, start workers, run rounds, evaluate, report."""

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from covey.algorithms.registry import parse_algorithm
from covey.compression.checkpoint import download_spec
from covey.compression.codec import codec_named
from covey.data.dataset import FederatedDataset, sizes_of
from covey.plans.manifest import PrivacyTerms
from covey.privacy.guarantee import Guarantee
from covey.privacy.spec import is_noised
from covey.recipes.prepare import Prepared, prepare
from covey.recipes.recipe import TRAINERS, Recipe, Settings, load_recipe
from covey.server.settings import RoundSettings
from covey.simulation.asynchronous import AsynchronousFederation
from covey.simulation.divergence import Watch
from covey.simulation.evaluation import Evaluation
from covey.simulation.federation import Federation, owner_key, public_bytes
from covey.simulation.fleet import Fleet
from covey.simulation.load import loads_of
from covey.simulation.messages import Setup
from covey.simulation.pool import WorkerPool, available_cores
from covey.simulation.population import DevicePopulation
from covey.simulation.promise import Promise, promised
from covey.simulation.report import RoundRow, RunReport, versions
from covey.simulation.rundir import RunConfig, RunDir
from covey.simulation.target import Crossing
from covey.types.errors import TrainingError, UsageError
from covey.types.tensors import sha256_hex

__all__ = ["Progress", "SimulationOptions", "check_asked", "simulate"]

_MOST_ROUNDS_TO_TARGET = 2000
_DEFAULT_ROUNDS = 10
_A_DAY_S = 86_400.0

AnyFederation = Federation | AsynchronousFederation


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
        report_timeout_s: virtual seconds that devices have for a round; whoever takes longer is not counted.
        population: when devices are there, how fast they are, and how often one drops out.
        privacy: a SPEC of differential privacy, as ``docs/privacy.md`` describes; None: none.
        out: a folder for the plan, the rounds, the last checkpoint and the report; None: nothing is written.
        resume: go on with the run in ``out`` instead of beginning one there.
        allow_divergence: go on where training diverges, as long as any round can be committed.
        device_accuracy: evaluate the last model on single devices' own examples too.
    """

    rounds: int | None = None
    target: float | None = None
    seed: int = 0
    workers: int | None = None
    eval_every: int = 1
    over_selection: float = 1.0
    report_timeout_s: float = 600.0
    population: DevicePopulation = dataclasses.field(default_factory=DevicePopulation)
    privacy: str | None = None
    out: Path | None = None
    resume: bool = False
    allow_divergence: bool = False
    device_accuracy: bool = False

    @property
    def last(self) -> int:
        """The number of the last round."""
        if self.rounds is not None:
            return self.rounds
        return _DEFAULT_ROUNDS if self.target is None else _MOST_ROUNDS_TO_TARGET

    def deciding(self) -> dict[str, Any]:
        """Return what decides the bits of a run, by name."""
        kept = ("seed", "eval_every", "over_selection", "report_timeout_s", "privacy")
        out = {name: getattr(self, name) for name in kept} | dataclasses.asdict(self.population)
        return out | ({"rounds": self.last} if self.privacy is not None else {})


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


@dataclasses.dataclass(frozen=True)
class _Run:
    """What every part of a run needs to know."""

    source: str
    settings: Settings
    options: SimulationOptions
    dataset: FederatedDataset
    rounds: RoundSettings
    prepared: Prepared
    promise: Promise | None


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
        ResumeError: nothing to resume, or a run of another configuration.
        TrainingError: training diverged; names the round and the cause.
    """
    started_s = time.monotonic()
    options, progress = options or SimulationOptions(), progress or Progress()
    recipe = load_recipe(source)
    run = _prepared(recipe, source, settings or recipe.settings, options, progress)
    num_workers = available_cores() if options.workers is None else options.workers
    num_workers = min(num_workers, run.rounds.num_selected)
    with _run_dir(run) as (run_dir, states):
        setup = Setup(
            source,
            dataclasses.replace(_built_with(recipe, run.settings), trainer=run.settings.trainer),
            options.seed,
            run.prepared.plan_bytes,
            public_bytes(owner_key(options.seed)),
            str(states),
        )
        with WorkerPool(num_workers, setup) as pool:
            progress.starting(len(run.dataset.client_ids), num_workers, run.prepared)
            evaluation = Evaluation(pool, run.dataset, run.prepared.plan.manifest.eval_batch_size)
            pool.ready()
            fleet = _fleet(run)
            federation = _federation(run, fleet, pool, run_dir, progress)
            stopped = _play(run, federation, evaluation, run_dir, progress, started_s)
            report = _report(run, federation, fleet, evaluation, run_dir, stopped, started_s)
            run_dir.finish(report, federation.checkpoint)
    return report


def _prepared(recipe: Recipe, source: str, settings: Settings, options: SimulationOptions, progress: Progress) -> _Run:
    check_asked(settings, options)
    dataset = recipe.data(settings, options.seed)
    num_devices = len(dataset.client_ids)
    rounds = _rounds(settings, options, num_devices)
    terms = PrivacyTerms(min_cohort=1, n_max=max(10_000, rounds.num_selected))
    built = _built_with(recipe, settings)
    prepared = prepare(
        recipe, source, built, terms, dataset,
        seed=options.seed, noised=is_noised(options.privacy), on_build=progress.building,
    )  # fmt: skip
    prepared, promise = promised(prepared, options.privacy, rounds, options.last, num_devices)
    if promise is not None:
        progress.promised(promise.before())
    if any(h.name == "lr" for h in prepared.plan.manifest.hyper):
        rounds = dataclasses.replace(rounds, hyper={"lr": settings.lr})
    return _Run(source, settings, options, dataset, rounds, prepared, promise)


@contextlib.contextmanager
def _run_dir(run: _Run) -> Iterator[tuple[RunDir, Path]]:
    """Open the run's folder, and one for what devices keep; whatever happens, the newest snapshot is written."""
    options, prepared = run.options, run.prepared
    config = RunConfig.of(
        run.source,
        dataclasses.asdict(run.settings),
        options.deciding(),
        prepared.plan.hash,
        {"rounds": options.rounds, "target": options.target},
    )
    run_dir = RunDir(options.out, config, prepared.plan_bytes, resume=options.resume)
    with tempfile.TemporaryDirectory(prefix="covey-") as temporary:
        try:
            own = run_dir.states if _keeps_state(prepared) else None
            yield run_dir, own or Path(temporary)
        finally:
            run_dir.close()


def _keeps_state(prepared: Prepared) -> bool:
    return any(p.kept for p in prepared.plan.manifest.phases)


def _fleet(run: _Run) -> Fleet:
    plan_bytes, loads = len(run.prepared.plan_bytes), loads_of(run.prepared.plan.manifest)
    return Fleet(sizes_of(run.dataset), run.options.population, loads, seed=run.options.seed, plan_bytes=plan_bytes)


def _federation(run: _Run, fleet: Fleet, pool: WorkerPool, run_dir: RunDir, progress: Progress) -> AnyFederation:
    prepared, options = run.prepared, run.options
    common: dict[str, Any] = {
        "seed": options.seed,
        "on_session": progress.session,
        "resumed": run_dir.snapshot,
        "lenient": options.allow_divergence,
    }
    if run_dir.snapshot is not None:
        fleet.restore(run_dir.snapshot.fleet)
    where = (prepared.plan, prepared.plan_bytes, prepared.checkpoint, fleet, run.rounds, pool)
    choice = parse_algorithm(run.settings.algorithm)
    if choice.name != "fedbuff":
        return Federation(*where, **common)
    return AsynchronousFederation(*where, **common)


def _play(
    run: _Run, federation: AnyFederation, evaluation: Evaluation, run_dir: RunDir, progress: Progress, started_s: float
) -> str:
    """Run the rounds that are missing; return why they ended early, or nothing."""
    options, rows = run.options, run_dir.rows
    watch = Watch(run.settings)
    # What devices keep is versioned by round, and only the newest versions are there.
    at_once = _keeps_state(run.prepared)
    spent_s = run_dir.snapshot.seconds if run_dir.snapshot else 0.0
    for row in rows if not options.allow_divergence else ():
        watch.observe(row)
    before_s = started_s
    while len(rows) < options.last and not _reached(rows, options.target):
        try:
            summary = federation.next_round()
        except TrainingError as error:
            if not options.allow_divergence:
                raise
            return str(error)
        accuracy = loss = None
        if summary.round % options.eval_every == 0 or summary.round == options.last:
            accuracy, loss = evaluation.pooled(federation.checkpoint)
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
            at_s=federation.now_s,
        )
        before_s = now_s
        rows.append(row)
        if options.out is not None:
            snapshot = msgspec.structs.replace(federation.snapshot(), seconds=spent_s + now_s - started_s)
            run_dir.add(row, snapshot, at_once=at_once)
        progress.round(row)
        if not options.allow_divergence:
            watch.observe(row)
    return ""


def _reached(rows: list[RoundRow], target: float | None) -> bool:
    return target is not None and any(r.accuracy is not None and r.accuracy >= target for r in rows[-1:])


def _report(
    run: _Run,
    federation: AnyFederation,
    fleet: Fleet,
    evaluation: Evaluation,
    run_dir: RunDir,
    stopped: str,
    started_s: float,
) -> RunReport:
    options, rows = run.options, run_dir.rows
    by_device: tuple[list[float], str] = ([], "")
    if options.device_accuracy:
        by_device = evaluation.by_device(federation.checkpoint, options.seed)
    spent_s = run_dir.snapshot.seconds if run_dir.snapshot else 0.0
    crossed = Crossing.of(rows, options.target)
    return RunReport(
        recipe=run.source,
        algorithm=run.settings.algorithm,
        seed=options.seed,
        mode=run.prepared.plan.manifest.privacy.mode,
        settings=dataclasses.asdict(run.settings),
        options=options.deciding(),
        versions=versions(),
        plan=run.prepared.plan.hash,
        checkpoint=sha256_hex(federation.checkpoint),
        rounds=rows,
        target=options.target,
        client_steps=fleet.num_steps,
        seconds=spent_s + time.monotonic() - started_s,
        bytes_up=sum(r.bytes_up for r in rows),
        bytes_down=sum(r.bytes_down for r in rows),
        privacy=None if run.promise is None else run.promise.after(federation.storage),
        traffic=dict(sorted(fleet.traffic.items())),
        device_s=dict(fleet.device_s),
        device_accuracy=by_device[0],
        device_examples=by_device[1],
        stopped=stopped,
        target_round=crossed.round,
        target_bytes=crossed.num_bytes,
        target_s=crossed.at_s,
    )


def _built_with(recipe: Recipe, settings: Settings) -> Settings:
    """Return the settings that the plan is built with: the recipe's own learning rate where a round can set another.

    A sweep over learning rates, or over how they decay, then needs one plan only.
    """
    own, settings = recipe.settings.lr, dataclasses.replace(settings, lr_decay=1.0)
    if parse_algorithm(settings.algorithm).name != "fedsgd" and own / 1000 <= settings.lr <= own * 1000:
        return dataclasses.replace(settings, lr=own)
    return settings


def check_asked(settings: Settings, options: SimulationOptions) -> None:
    """Refuse what cannot work with any data, before anything is read or built.

    Raises:
        UsageError: a value, an algorithm or a spec that cannot be.
        MissingExtraError: a codec whose package is not installed.
    """
    checks: list[tuple[bool, str, str, Any]] = [
        (options.last >= 1, "--rounds", "at least 1", options.rounds),
        (settings.cohort >= 1, "--cohort", "at least 1", settings.cohort),
        (options.workers is None or options.workers >= 1, "--workers", "at least 1", options.workers),
        (options.eval_every >= 1, "--eval-every", "at least 1", options.eval_every),
        (1 <= options.over_selection < math.inf, "--over-selection", "at least 1", options.over_selection),
        (options.report_timeout_s > 0, "--report-timeout", "above 0", options.report_timeout_s),
        (settings.lr > 0, "--lr", "above 0", settings.lr),
        (0 < settings.lr_decay <= 1, "--lr-decay", "above 0, at most 1", settings.lr_decay),
        (settings.epochs >= 1, "--epochs", "at least 1", settings.epochs),
        (settings.batch_size is None or settings.batch_size >= 1, "--batch", "at least 1, or inf", settings.batch_size),
        (options.target is None or 0 < options.target <= 1, "--target", "a fraction, as 0.97", options.target),
        (settings.trainer in TRAINERS, "--trainer", ", ".join(TRAINERS), settings.trainer),
    ]
    for ok, flag, expected, got in checks:
        if not ok:
            raise UsageError(flag, expected=expected, got=str(got))
    parse_algorithm(settings.algorithm)
    codec_named(settings.compression)
    download_spec(settings.download)


def _rounds(settings: Settings, options: SimulationOptions, num_devices: int) -> RoundSettings:
    rounds = RoundSettings(
        goal=settings.cohort,
        over_selection=options.over_selection,
        selection_timeout_s=_A_DAY_S,  # by then every trace has brought whoever it brings
        report_timeout_s=options.report_timeout_s,
        lr_decay=settings.lr_decay,
    )
    if rounds.num_selected > num_devices:
        raise UsageError(
            "--cohort",
            expected=f"at most the {num_devices} devices of the data set",
            got=str(rounds.num_selected),
            hint="a smaller cohort, or more devices (--clients)",
        )
    return rounds
