"""Tasks: what may become of one, and which of a population's tasks the next round is for. Pure.

::

    created ──resume──▶ running ──complete──▶ completed ──extend──▶ running
                        │     ▲
                      pause resume             cancel: from created, running or paused
                        ▼     │                roll_back: running or paused, and it stays so
                        paused

The schedule has two rules. An evaluation is due when it has not been yet, or when the model has moved by ``every``
versions since; evaluations that are due go first, in the order of their creation. Otherwise the training goes on. An
evaluation that was abandoned waits for the next version, so that it cannot keep the training from its rounds; where
nothing trains, it is tried again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from covey.plans.manifest import Manifest
from covey.server.settings import TaskSettings
from covey.storage.interface import TaskRecord
from covey.types.errors import TaskStateError
from covey.wire.administration import BufferStatus, TaskStatus

__all__ = ["EVALUATE", "TRAIN", "Action", "Task", "TaskState", "after", "next_task", "status_of"]

TRAIN, EVALUATE = "train", "evaluate"


class TaskState(Enum):
    """Where a task stands."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"

    @property
    def live(self) -> bool:
        """Whether rounds of it may still come."""
        return self in (TaskState.CREATED, TaskState.RUNNING, TaskState.PAUSED)


class Action(Enum):
    """What can be done with a task. ``complete`` and ``extend`` are the server's own."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    ROLL_BACK = "rollback"
    COMPLETE = "complete"
    EXTEND = "extend"


_LEGAL: Mapping[tuple[TaskState, Action], TaskState] = {
    (TaskState.CREATED, Action.RESUME): TaskState.RUNNING,
    (TaskState.CREATED, Action.CANCEL): TaskState.CANCELLED,
    (TaskState.CREATED, Action.COMPLETE): TaskState.COMPLETED,
    (TaskState.RUNNING, Action.PAUSE): TaskState.PAUSED,
    (TaskState.RUNNING, Action.CANCEL): TaskState.CANCELLED,
    (TaskState.RUNNING, Action.COMPLETE): TaskState.COMPLETED,
    (TaskState.RUNNING, Action.ROLL_BACK): TaskState.RUNNING,
    (TaskState.PAUSED, Action.RESUME): TaskState.RUNNING,
    (TaskState.PAUSED, Action.CANCEL): TaskState.CANCELLED,
    (TaskState.PAUSED, Action.COMPLETE): TaskState.COMPLETED,
    (TaskState.PAUSED, Action.ROLL_BACK): TaskState.PAUSED,
    (TaskState.COMPLETED, Action.EXTEND): TaskState.RUNNING,
}


def after(name: str, state: TaskState, action: Action) -> TaskState:
    """Return the state of task ``name`` after ``action``.

    Raises:
        TaskStateError: the action is not for this state.
    """
    if (state, action) not in _LEGAL:
        states = [s.value for s, a in _LEGAL if a is action]
        raise TaskStateError(
            f"task {name!r}",
            expected=f"{' or '.join(states)}, to {action.value} it",
            got=state.value,
            hint="`covey task list` shows where every task stands",
        )
    return _LEGAL[state, action]


@dataclass(frozen=True, slots=True)
class Task:
    """A task's record with what its bytes say."""

    record: TaskRecord
    settings: TaskSettings

    @property
    def name(self) -> str:
        """Unique within the population."""
        return self.record.name

    @property
    def state(self) -> TaskState:
        """Where it stands."""
        return TaskState(self.record.state)

    @property
    def trains(self) -> bool:
        """Whether it moves the model."""
        return self.record.kind == TRAIN

    def finished(self, now_s: float) -> bool:
        """Whether it has had all its rounds, or its time is over."""
        most, until = self.settings.round.max_rounds, self.settings.until
        return 0 < most <= self.record.rounds or 0 < until <= now_s

    @property
    def last_round(self) -> bool:
        """Whether its next committed round completes it."""
        return 0 < self.settings.round.max_rounds <= self.record.rounds + 1

    def wakes_at_s(self) -> float | None:
        """Return when its state changes by itself, or None."""
        if not self.state.live:
            return None
        if 0 < self.settings.round.max_rounds <= self.record.rounds:
            return 0.0  # it is finished, and could not be completed yet
        return self.settings.start_at if self.state is TaskState.CREATED else self.settings.until or None

    def due(self, version: int) -> bool:
        """Whether an evaluation is due at this version of the model."""
        return self.record.version < 0 or version - self.record.version >= self.settings.every


def next_task(tasks: Sequence[Task], version: int, tried: Mapping[str, int], now_s: float) -> str | None:
    """Return the name of the task that the next round is for, or None where none is due.

    Args:
        tasks: the population's, in the order of their creation.
        version: of the model.
        tried: for evaluations, at which version the last attempt was made.
        now_s: the time.
    """
    running = [t for t in tasks if t.state is TaskState.RUNNING and not t.finished(now_s)]
    training = next((t.name for t in running if t.trains), None)
    for task in running:
        if not task.trains and task.due(version) and (training is None or tried.get(task.name, -1) < version):
            return task.name
    return training


def status_of(task: Task, manifest: Manifest, buffer: BufferStatus | None = None) -> TaskStatus:
    """Return what an administrator is told of a task, with how far its buffer is, where it has one."""
    return TaskStatus(
        task=task.name,
        kind=task.record.kind,
        state=task.record.state,
        plan=task.record.plan,
        plan_task=manifest.task,
        mode=manifest.privacy.mode,
        min_cohort=manifest.privacy.min_cohort,
        rounds=task.record.rounds,
        settings=msgspec.to_builtins(task.settings),
        checkpoint=task.record.checkpoint,
        buffer=buffer,
    )
