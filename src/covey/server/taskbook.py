"""The tasks of one population, and its model: what is stored of them, kept at hand, and changed only through here."""

from collections.abc import Mapping
from dataclasses import replace

from covey.plans.manifest import Manifest
from covey.plans.plan import unpack_plan
from covey.privacy.randomness import Randomness
from covey.server.settings import TaskSettings, decode_settings
from covey.server.tasks import Action, Task, TaskState, after, next_task
from covey.server.work import Evaluation, Training, Work, checkpoint_ref
from covey.storage.interface import Storage, TaskRecord, Version
from covey.types.errors import NotFoundError, TaskStateError, UsageError
from covey.wire.messages import BlobRef, RoundSummary

__all__ = ["TaskBook"]


class TaskBook:
    """Law: what is at hand is what is stored; a change that cannot be stored changes nothing."""

    def __init__(
        self, population: str, storage: Storage, *, noise: Randomness | None = None, simulated: bool = False
    ) -> None:
        """Read a population that was created.

        Args:
            population: its name.
            storage: what the server keeps.
            noise: for plans with differential privacy.
            simulated: whether seeded noise is accepted.
        """
        self.population = population
        self._storage = storage
        self._noise, self._simulated = noise, simulated
        self._tasks: dict[str, Task] = {}
        self._manifests: dict[str, Manifest] = {}  # by plan: one evaluation plan serves every candidate
        self._works: dict[str, Work] = {}
        self.refresh()

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks, in the order of their creation."""
        return tuple(self._tasks.values())

    @property
    def training(self) -> Task | None:
        """The task that moves the model; where none is live, the last that did."""
        trainings = [t for t in self.tasks if t.trains]
        return next((t for t in trainings if t.state.live), trainings[-1] if trainings else None)

    def task(self, name: str) -> Task:
        """Return a task.

        Raises:
            NotFoundError: no such task.
        """
        if name not in self._tasks:
            raise NotFoundError("task", expected="a task of this population", got=f"{name!r}", hint="covey task list")
        return self._tasks[name]

    def manifest(self, name: str) -> Manifest:
        """Return the manifest of a task's plan."""
        plan = self.task(name).record.plan
        if plan not in self._manifests:
            self._manifests[plan] = unpack_plan(self._storage.blob(plan)).manifest
        return self._manifests[plan]

    def work(self, name: str) -> Work:
        """Return what the task's rounds are for.

        Raises:
            UsageError: settings or a plan that cannot work.
            PrivacyError: noise that cannot be; BudgetExhaustedError where the population has spent what it may.
            NotFoundError: a checkpoint that is gone.
        """
        if name not in self._works:
            self._works[name] = self._make(self.task(name), self.manifest(name))
        return self._works[name]

    def next_task(self, tried: Mapping[str, int], now_s: float, *, moved: int = 0) -> str | None:
        """Return whose turn it is, or will be when the model has moved by ``moved`` versions."""
        return next_task(self.tasks, self.version + moved, tried, now_s)

    def refresh(self) -> None:
        """Take up what is stored."""
        record = self._storage.load(self.population)
        assert record is not None, "a task book has its population"
        self.version = record.round
        self.checkpoint: BlobRef = checkpoint_ref(self._storage.blob(record.checkpoint))
        for stored in self._storage.tasks(self.population):
            old = self._tasks.get(stored.name)
            settings = old.settings if old and old.record.settings == stored.settings else _settings(stored)
            self._tasks[stored.name] = Task(stored, settings)
            if stored.name in self._works:
                self._works[stored.name].task = self._tasks[stored.name]

    def committed(self, work: Work) -> None:
        """Note a round that was committed. Nothing is read: what is stored is known."""
        task = self._tasks[work.task.name]  # its state may have changed while the round ran
        if task.trains:
            self.version, self.checkpoint = self.version + 1, work.checkpoint
        record = replace(task.record, rounds=task.record.rounds + 1, version=self.version)
        self._tasks[task.name] = work.task = Task(record, task.settings)

    def add(self, record: TaskRecord) -> Task:
        """Add a task whose plan and signature were checked.

        Raises:
            TaskStateError: another training is live, or the name is taken.
            UsageError: settings or a plan that cannot work here.
        """
        if record.name in self._tasks:
            raise TaskStateError("task", expected="a new name", got=f"{record.name!r}, which exists")
        task = Task(record, _settings(record))
        manifest = unpack_plan(self._storage.blob(record.plan)).manifest
        self._check_beside_others(task, manifest)
        work = self._make(task, manifest)
        self._storage.add_task(record)
        self._tasks[record.name], self._manifests[record.plan], self._works[record.name] = task, manifest, work
        return task

    def change(self, name: str, action: Action) -> Task:
        """Change a task's state.

        Raises:
            NotFoundError, TaskStateError: no such task, or not in this state.
            BudgetExhaustedError: a training cannot go on that has spent its budget.
        """
        task = self.task(name)
        state = after(name, task.state, action)
        if state is TaskState.RUNNING:
            if task.trains and not task.state.live:
                self._check_beside_others(task, self.manifest(name))
            self.work(name)
        self._storage.change_task(self.population, name, state.value, task.record.settings)
        changed = self._tasks[name] = Task(replace(task.record, state=state.value), task.settings)
        if name in self._works:
            self._works[name].task = changed
            if not changed.state.live:
                del self._works[name]  # a round under way holds its own; each candidate has a task, and few are needed
        return changed

    def roll_back(self, name: str, row: RoundSummary, version: Version) -> Task:
        """Make a kept version the newest again.

        Raises:
            NotFoundError, TaskStateError: no such task, one that is over, or one that moves no model.
            StorageError: nothing changed.
        """
        task = self.task(name)
        after(name, task.state, Action.ROLL_BACK)
        if not task.trains:
            raise TaskStateError(f"task {name!r}", expected="a task that trains, to roll back", got=task.record.kind)
        self._storage.roll_back(self.population, row, version)
        self._works.clear()  # what they carry belongs to the version that is left
        self.refresh()
        return self.task(name)

    def _make(self, task: Task, manifest: Manifest) -> Work:
        if task.trains:
            return Training(task, manifest, self._storage, noise=self._noise, simulated=self._simulated)
        return Evaluation(task, manifest, self._storage)

    def _check_beside_others(self, task: Task, manifest: Manifest) -> None:
        """Refuse a second training, whose rounds would overwrite the first one's model, and metrics without noise."""
        training = self.training
        if task.trains and training is not None and training.state.live:
            raise TaskStateError(
                f"task {task.name!r}",
                expected="no other training that is live: a population has one model",
                got=f"task {training.name!r}, {training.record.state}",
                hint=f"`covey task cancel {training.name}`, or a population of its own",
            )
        private = [t.name for t in self.tasks if t.trains and self.manifest(t.name).privacy.noise is not None]
        private += [task.name] if manifest.privacy.noise is not None else []
        evaluating = [t.name for t in (*self.tasks, task) if not t.trains and t.state.live]
        if private and evaluating:
            raise UsageError(
                f"task {task.name!r}",
                expected="no evaluation where differential privacy is promised: it opens metrics without noise",
                got=f"{evaluating[-1]!r} evaluates, and {private[-1]!r} promises",
            )


def _settings(record: TaskRecord) -> TaskSettings:
    return decode_settings(record.settings, f"settings of task {record.name!r}")
