"""What drives the release desk beside the rounds: it listens to them, and asks for an evaluation task when one is due.

The evaluation of a candidate is a task of its own, ``release-ROUND-VERSION``: one round of the evaluation plan over the
candidate's checkpoint, compared with the present release's. Nothing here can stop a round: what fails is told and tried
again after the next one.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from covey.plans.manifest import Manifest
from covey.plans.plan import unpack_plan
from covey.plans.release import Release
from covey.server.config import ServerConfig
from covey.server.logs import event
from covey.server.messages import ChangeTask, CreateTask
from covey.server.metrics import Metrics
from covey.server.population import check_signature
from covey.server.promotion import ReleaseSettings
from covey.server.release_key import ReleaseKey
from covey.server.releases import ReleaseDesk, Wanted
from covey.server.settings import RoundSettings, TaskSettings, encode_settings
from covey.server.tasks import EVALUATE, TRAIN, Action, TaskState
from covey.storage.interface import Storage, TaskRecord
from covey.types.errors import CoveyError, StorageError, UsageError
from covey.wire.messages import CandidateSummary, RoundSummary

__all__ = ["EvaluationPlan", "Releasing", "load_evaluation"]

_PREFIX = "release-"

Refused = Callable[[CoveyError], None]
Administer = Callable[[CreateTask | ChangeTask, Refused], None]


class EvaluationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation plan that the owner signed: its hash, a stored blob, the signature, and what it compares."""

    plan: str
    signature: str
    metric: str


def load_evaluation(storage: Storage, directory: Path, config: ServerConfig) -> EvaluationPlan | None:
    """Return the evaluation plan of a server's directory, stored; None where there is none.

    Raises:
        UsageError: a plan without a signature, or one that does not compare two checkpoints.
        PlanError: not a plan, or not signed by the owner whose key is in the directory.
    """
    path = directory / config.release.plan
    if not config.release.every or not path.is_file():
        return None
    data = path.read_bytes()
    plan = unpack_plan(data)
    (phase, *others) = plan.manifest.phases
    if phase.graph != "eval" or others:
        raise UsageError(f"file {path}", expected="an evaluation plan", got="a training plan", hint=_MAKE)
    if phase.against:
        raise UsageError(
            f"file {path}", expected="a comparison with the release before", got=f"one with {phase.against} models"
        )
    try:
        signature = (directory / config.release.signature).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(
            f"file {directory / config.release.signature}", expected="the owner's signature", got="none", hint=_MAKE
        ) from e
    if (directory / config.owner_key).exists():
        check_signature(directory, config, plan.hash, signature)
    return EvaluationPlan(plan=storage.put_blob(data), signature=signature, metric=phase.compares)


class Releasing:
    """One population's. Everything runs on the event loop, and none of it raises."""

    def __init__(
        self,
        storage: Storage,
        directory: Path | None,
        config: ServerConfig,
        administer: Administer,
        metrics: Metrics,
        now_s: Callable[[], float],
    ) -> None:
        """Take up where the storage stands; :meth:`start` begins.

        Args:
            storage: what the server keeps; it holds the population and its configured task.
            directory: with the release key, the delegation and the evaluation plan; None: nothing is released.
            config: the server's.
            administer: sends a message to the coordinator, later, and tells if it was refused.
            metrics: where verdicts are counted.
            now_s: the clock, seconds since 1970.

        Raises:
            UsageError, PlanError: files that are there and cannot be used.
        """
        table = msgspec.structs.asdict(config.release)
        settings = ReleaseSettings(**{k: v for k, v in table.items() if k not in ("plan", "signature")})
        if directory is None:
            settings = replace(settings, every=0)
        self._population = config.population
        self._storage = storage
        self._rounds = config.round
        self._administer = administer
        self._metrics = metrics
        self._now_s = now_s
        self._plan = load_evaluation(storage, directory, config) if directory else None
        self._told_state = "on"
        key = ReleaseKey(directory, config.population, config.owner_key)
        key.signer(now_s())  # a file that holds no key is told at the start
        metric = self._plan.metric if self._plan else None
        self.desk = ReleaseDesk(config.population, self._plan_of, storage, settings, key.signer, metric=metric)

    def start(self) -> None:
        """Say whether anything can be released, and take up a candidate that was pending."""
        self._quietly(lambda: self._told(self.desk.resumed(self._now_s())))

    def round_ended(self, row: RoundSummary) -> None:
        """Take the row of a round that ended: a training may make a candidate, an evaluation decides about one."""
        self._quietly(lambda: self._take(row))

    def roll_back(self, version: int) -> Release:
        """Publish an earlier release again; see :meth:`ReleaseDesk.roll_back`, which may raise."""
        made = self.desk.roll_back(version, self._now_s())
        event(logging.INFO, "release rolled back", version=made.version, rollback_of=version)
        self._quietly(lambda: None)
        return made

    def _quietly(self, act: Callable[[], None]) -> None:
        """Let nothing that fails here stop a round: it is told, and tried again after the next one."""
        try:
            self._tell_state()
            act()
            self._ask()
        except CoveyError as error:
            _not_done(error)

    def _take(self, row: RoundSummary) -> None:
        now_s = self._now_s()
        if row.kind == TRAIN:
            self._told(self.desk.committed(row, now_s))
            return
        wanted = self.desk.wanted(now_s)
        if wanted is None or row.task != _task_name(wanted):
            return
        if row.status == "committed":
            self._told(self.desk.evaluated(wanted, row.metrics, now_s))
        elif self.desk.evaluation_failed(wanted):
            # The verdict follows when the task is seen to be over: a task that lives must find its checkpoint.
            self._administer(ChangeTask("", row.task, Action.CANCEL.value), _not_done)

    def _ask(self) -> None:
        """Ask for the evaluation task that the desk waits for; if it is over already, take what it led to."""
        wanted = self.desk.wanted(self._now_s())
        name = _task_name(wanted) if wanted else ""
        tasks = [t for t in self._storage.tasks(self._population) if t.kind == EVALUATE and t.name.startswith(_PREFIX)]
        for stale in (t for t in tasks if t.name != name and TaskState(t.state).live):  # a roll-back came between
            self._administer(ChangeTask("", stale.name, Action.CANCEL.value), _not_done)
        if wanted is None or self._plan is None:
            return
        found = next((t for t in tasks if t.name == name), None)
        if found is None:
            self._administer(CreateTask("", self._task(name, wanted, self._plan)), lambda e: self._refused(wanted, e))
        elif not TaskState(found.state).live:
            rows = [r for r in self._storage.rounds(self._population) if (r.task, r.status) == (name, "committed")]
            if rows:  # its verdict was lost in a crash, or could not be signed at the time
                self._told(self.desk.evaluated(wanted, rows[-1].metrics, self._now_s()))
            else:  # it failed too often, or an administrator cancelled it
                self._told(self.desk.give_up(wanted, self._now_s()))

    def _refused(self, wanted: Wanted, error: CoveyError) -> None:
        """Take that an evaluation cannot be made. A storage that failed may work the next time."""
        _not_done(error)
        if not isinstance(error, StorageError):
            self._quietly(lambda: self._told(self.desk.give_up(wanted, self._now_s())))

    def _task(self, name: str, wanted: Wanted, plan: EvaluationPlan) -> TaskRecord:
        """Return the task: one round that goes like those of training, without their per-round values."""
        rounds = {**msgspec.structs.asdict(self._rounds), "max_rounds": 1, "hyper": {}}
        settings = TaskSettings(RoundSettings(**rounds), candidate=wanted.checkpoint, reference=wanted.reference)
        return TaskRecord(
            self._population,
            name,
            EVALUATE,
            plan.plan,
            plan.signature,
            encode_settings(settings),
            TaskState.CREATED.value,
        )

    def _plan_of(self, task: str) -> tuple[str, Manifest]:
        found = next((t for t in self._storage.tasks(self._population) if t.name == task), None)
        assert found is not None, "a candidate's task is never deleted"
        return found.plan, unpack_plan(self._storage.blob(found.plan)).manifest

    def _told(self, candidate: CandidateSummary | None) -> None:
        if candidate is None:
            return
        facts = {k: getattr(candidate, k) for k in ("round", "status", "reason", "version", "compared", "cohort")}
        event(logging.INFO, "candidate for release", **facts)
        if candidate.status != "pending":
            self._metrics.decided(candidate)

    def _tell_state(self) -> None:
        state = self.desk.state(self._now_s())
        if state not in (self._told_state, "off"):
            # Without a key a server was never meant to publish; a delegation that expired is the owner's to renew.
            level = logging.INFO if state in ("on", "no_release_key") else logging.WARNING
            event(level, "releases", state=state)
        self._told_state = state


def _not_done(error: CoveyError) -> None:
    event(logging.ERROR, "release desk failed", code=error.code, message=str(error))


def _task_name(wanted: Wanted) -> str:
    return f"{_PREFIX}{wanted.round}-{wanted.version}"


_MAKE = "`covey plan evaluation` makes one"
