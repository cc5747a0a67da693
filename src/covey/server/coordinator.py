"""The coordinator: one per population. It runs one round after another (1902.01046, section 4.2), each for one task.

While a round reports, the next one's devices are gathered already: the selector is told of the wish, and grants it once
the new checkpoint exists. Whatever happens to a round, the next one starts from the last committed checkpoint.

Where the training is asynchronous, its rounds are the buffers of one :class:`covey.server.buffer.Buffer`, which is set
aside while another task has its turn.
"""

import contextlib
from collections.abc import Callable
from enum import Enum
from typing import Any

from covey.plans.manifest import Manifest
from covey.privacy.randomness import Randomness
from covey.server.attempt import Attempt, RoundState, empty_row, send_away
from covey.server.buffer import Buffer
from covey.server.messages import (
    BytesServed,
    ChangeTask,
    CreateTask,
    DevicesSelected,
    Envelope,
    Reply,
    WantNobody,
    device_address,
    selector_address,
)
from covey.server.round import Round, wish
from covey.server.settings import RoundSettings, TaskSettings
from covey.server.taskbook import TaskBook
from covey.server.tasks import Action, Task, TaskState, after, status_of
from covey.server.work import Work, plan_ref
from covey.storage.interface import Storage
from covey.types.errors import BudgetExhaustedError, CoveyError, NotFoundError, StorageError
from covey.wire.administration import TaskStatus
from covey.wire.messages import BlobRef, RoundSummary

__all__ = ["Coordinator", "CoordinatorState", "RoundSettings"]

_PAUSE_AFTER_FAILURE_S = 1.0
"""A round that fails at once must not be tried again in a tight loop."""


class CoordinatorState(Enum):
    """Where a population stands; paused, while no task has a round to come."""

    PAUSED = "paused"
    BETWEEN_ROUNDS = "between_rounds"
    SELECTING = "selecting"
    REPORTING = "reporting"
    CLOSING = "closing"


class Coordinator:
    """One population's rounds. Law: at most one round is under way, and every one that began gets its row."""

    def __init__(
        self,
        population: str,
        storage: Storage,
        *,
        new_token: Callable[[], str],
        num_shards: int = 1,
        noise: Randomness | None = None,
        simulated: bool = False,
    ) -> None:
        """Take up tasks and model where the storage has them; :meth:`start` begins.

        Args:
            population: one that was created.
            storage: where rounds are committed.
            new_token: unguessable names for attempts and sessions; seeded only in a simulation.
            num_shards: how many aggregators share a cohort.
            noise: for plans with differential privacy; outside a simulation from a seed of the operating system.
            simulated: whether seeded noise is accepted.

        Raises:
            UsageError: a running task's settings that cannot work with its plan.
            PrivacyError: noise that cannot be.
            NotFoundError: a plan or a checkpoint that is not there.
        """
        self.population = population
        self.summaries = len(storage.rounds(population))
        self.expected_at_s: float | None = None
        self._storage = storage
        self._new_token = new_token
        self._num_shards = num_shards
        self._book = TaskBook(population, storage, noise=noise, simulated=simulated)
        self.buffer: Buffer | None = None
        """That of an asynchronous training, which may be set aside."""
        self._round: Attempt | None = None
        self._following: tuple[str, str] | None = None  # the next round's task, and the name of its attempt
        self._gathering: tuple[str, int] | None = None  # the attempt and phase whose followers are gathered
        self._tried: dict[str, int] = {}
        self._lasted_s: dict[str, float] = {}
        self._resume_at_s: float | None = None
        self._wake_after_s = 0.0
        for task in self._book.tasks:
            if task.state is TaskState.RUNNING:
                # Its first round says so, and the others are served; a checkpoint that was measured may be gone.
                with contextlib.suppress(BudgetExhaustedError, *(() if task.trains else (NotFoundError,))):
                    self._book.work(task.name)

    # What there is to see

    @property
    def round(self) -> int:
        """The newest version of the model."""
        return self._book.version

    @property
    def checkpoint(self) -> BlobRef:
        """The newest version of the model."""
        return self._book.checkpoint

    @property
    def state(self) -> CoordinatorState:
        """Where the population stands."""
        if self._round is not None:
            return CoordinatorState(self._round.state.value)
        return CoordinatorState.PAUSED if self._resume_at_s is None else CoordinatorState.BETWEEN_ROUNDS

    @property
    def filling(self) -> bool:
        """Whether devices are wanted for a buffer, one by one."""
        return self.buffer is not None and self.buffer is self._round

    @property
    def finished(self) -> bool:
        """Whether no task is live any more."""
        return not any(task.state.live for task in self._book.tasks)

    @property
    def training(self) -> Task | None:
        """The task that moves the model; where none is live, the last that did."""
        return self._book.training

    def tasks(self) -> tuple[TaskStatus, ...]:
        """Return every task, in the order of their creation."""
        return tuple(self._status(task) for task in self._book.tasks)

    def manifest(self, name: str) -> Manifest:
        """Return the manifest of a task's plan. Raises NotFoundError."""
        return self._book.manifest(name)

    def settings(self, name: str) -> TaskSettings:
        """Return a task's settings. Raises NotFoundError."""
        return self._book.task(name).settings

    def plan(self, name: str) -> BlobRef:
        """Return the plan that a task's devices execute. Raises NotFoundError."""
        return plan_ref(self._book.task(name), self._storage)

    # Messages and time

    def start(self, now_s: float) -> list[Envelope]:
        """Begin the first round, where a task has one."""
        self._wake_tasks(now_s)
        return self._next_round(now_s)

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take CreateTask, ChangeTask and BytesServed, and what an :class:`Attempt` takes."""
        match message:
            case CreateTask() | ChangeTask():
                return self._administer(message, now_s)
            case BytesServed(num_bytes=num_bytes):
                if self._round is not None:
                    self._round.tally.bytes_down += num_bytes
                return []
        for attempt in self._attempts():
            if attempt.name == message.attempt:
                return self._after_step(attempt, attempt.receive(message, now_s), now_s)
        return send_away(message.tickets) if isinstance(message, DevicesSelected) else []  # of a round that ended

    def next_deadline_s(self) -> float | None:
        """Return when a round begins, its reports are due, or a task starts or ends by itself."""
        due = [max(at_s, self._wake_after_s) for t in self._sleeping() if (at_s := t.wakes_at_s()) is not None]
        if self._round is None and self._resume_at_s is not None:
            due.append(self._resume_at_s)
        due += [at_s for a in self._attempts() if (at_s := a.next_deadline_s()) is not None]
        return min(due, default=None)

    def tick(self, now_s: float) -> list[Envelope]:
        """Do what is due."""
        woken = self._wake_tasks(now_s)
        out = self._clear_the_way(now_s)
        due = woken or bool(out) or (self._resume_at_s is not None and now_s >= self._resume_at_s)
        if self._round is None and due:
            out += self._next_round(now_s)
        for attempt in self._attempts():
            out += self._after_step(attempt, attempt.tick(now_s), now_s)
        return out

    # Rounds

    def _next_round(self, now_s: float, pause_s: float = 0.0) -> list[Envelope]:
        """Begin the next round after a pause, or rest where no task has one."""
        self._round = None
        name = self._book.next_task(self._tried, now_s)
        out = self._take_back_wish(unless_for=name)
        if name is None:
            self._resume_at_s = self.expected_at_s = None
            return out
        self._resume_at_s = self.expected_at_s = now_s + pause_s
        return out if pause_s else out + self._begin(name, now_s)

    def _begin(self, name: str, now_s: float) -> list[Envelope]:
        try:
            work = self._book.work(name)
            if not work.affordable():
                raise BudgetExhaustedError("round", expected="a budget for one more sum", got="none")
            current = self._attempt_at(work, now_s)
            out = current.begin(now_s)
        except CoveyError as error:
            return self._cannot_begin(name, error, now_s)
        self._tried[name] = self._book.version
        self._round, self._following, self._resume_at_s, self.expected_at_s = current, None, None, None
        return out

    def _attempt_at(self, work: Work, now_s: float) -> Attempt:
        rest = (now_s, self._new_token, self._num_shards)
        if work.asynchrony is None:
            name = self._following[1] if self._following is not None else self._new_token()
            return Round(work, self._storage, name, *rest)
        if self.buffer is None:
            self.buffer = Buffer(work, self._storage, self._new_token(), *rest)
        return self.buffer

    def _attempts(self) -> list[Attempt]:
        """Return the round under way, and the buffer where it is another."""
        aside = self.buffer if self.buffer is not self._round else None
        return [a for a in (self._round, aside) if a is not None]

    def _cannot_begin(self, name: str, error: CoveyError, now_s: float) -> list[Envelope]:
        """Pause a task that cannot have a round: its row says why, and nobody trains for a sum that stays closed."""
        if isinstance(error, StorageError):  # it may pass, and nothing can be written now
            self._resume_at_s = self.expected_at_s = now_s + _PAUSE_AFTER_FAILURE_S
            return []
        self._keep(empty_row(self._book.task(name), self.round, "abandoned", error.code))
        try:
            return self._change(name, Action.PAUSE, now_s)
        except StorageError:
            self._resume_at_s = self.expected_at_s = now_s + _PAUSE_AFTER_FAILURE_S
            return []

    def _after_step(self, current: Attempt, out: list[Envelope], now_s: float) -> list[Envelope]:
        """Go on after what a round did: gather the next devices while it reports, or begin anew when it has ended."""
        if current is not self._round:  # a buffer that was set aside
            return out
        if current.ended is None:
            began = current.state is RoundState.REPORTING and self._gathering != (current.name, current.phase)
            return out + self._gather(current, now_s) if began and current is not self.buffer else out
        failed = current.ended.status != "committed"
        if failed:
            self._keep(current.ended)
            self.buffer = None if current is self.buffer else self.buffer
        else:
            self._lasted_s[current.work.task.name] = now_s - current.reporting_since_s
            self.summaries += 1
            self._book.committed(current.work)
        self._round = None
        self._wake_tasks(now_s)
        out += self._clear_the_way(now_s)
        return out + self._next_round(now_s, max(current.settings.pause_s, _PAUSE_AFTER_FAILURE_S if failed else 0.0))

    def _gather(self, current: Attempt, now_s: float) -> list[Envelope]:
        """Let the selector gather the devices that follow these, for whose turn it then most likely is."""
        self._gathering, task = (current.name, current.phase), current.work.task
        lasts_s = self._lasted_s.get(task.name)
        self.expected_at_s = None if lasts_s is None else now_s + lasts_s + current.settings.pause_s
        if not current.last_phase:
            return [wish(current.name, current.settings, self.population, now_s, True, self.expected_at_s)]
        following = self._book.next_task(self._tried, now_s, moved=int(task.trains))
        if following is None or (following == task.name and task.last_round):
            return []
        if self.buffer is not None and following == self.buffer.work.task.name:  # it wants them one by one
            return []
        self._following = following, self._new_token()
        settings = self._book.task(following).settings.round
        return [wish(self._following[1], settings, self.population, now_s, True, self.expected_at_s)]

    def _take_back_wish(self, unless_for: str | None = None) -> list[Envelope]:
        if self._following is None or self._following[0] == unless_for:
            return []
        (_, attempt), self._following = self._following, None
        return [Envelope(selector_address(self.population), WantNobody(attempt))]

    def _keep(self, row: RoundSummary) -> None:
        """Keep a row; a full disk is often the very reason, the row is the lesser loss, and serving goes on."""
        with contextlib.suppress(StorageError):
            self._storage.add_summary(self.population, row)
            self.summaries += 1

    # Tasks

    def _sleeping(self) -> list[Task]:
        """Return the tasks whose state may change by itself: not that of the round that is under way.

        A buffer may be under way for ever, where devices are few: its task ends in the midst of it.
        """
        current = self._round
        fills = isinstance(current, Buffer) and current.state is RoundState.REPORTING
        busy = None if current is None or fills else current.work.task.name
        return [task for task in self._book.tasks if task.name != busy]

    def _wake_tasks(self, now_s: float) -> bool:
        """Start the tasks whose time has come and complete those that have had theirs; return whether any changed."""
        changed = False
        for task in self._sleeping() if now_s >= self._wake_after_s else []:
            try:
                if task.state.live and task.finished(now_s):
                    self._book.change(task.name, Action.COMPLETE)
                elif task.state is TaskState.CREATED and task.settings.start_at <= now_s:
                    self._book.change(task.name, Action.RESUME)
                else:
                    continue
                changed = True
            except CoveyError:
                self._wake_after_s = now_s + _PAUSE_AFTER_FAILURE_S
        return changed

    def _administer(self, message: CreateTask | ChangeTask, now_s: float) -> list[Envelope]:
        to = device_address(message.ticket)
        try:
            if isinstance(message, CreateTask):
                name, out = message.record.name, self._create(message, now_s)
            else:
                name, action = message.name, Action(message.action)
                back = action is Action.ROLL_BACK
                out = self._roll_back(name, message.round, now_s) if back else self._change(name, action, now_s)
        except CoveyError as error:
            return [Envelope(to, Reply(error))]
        return [*out, Envelope(to, Reply(self._status(self._book.task(name))))]

    def _status(self, task: Task) -> TaskStatus:
        filling = self.buffer is not None and self.buffer.work.task.name == task.name
        return status_of(task, self.manifest(task.name), self.buffer.status if self.buffer and filling else None)

    def _create(self, message: CreateTask, now_s: float) -> list[Envelope]:
        self._book.add(message.record)
        self._wake_tasks(now_s)
        out = self._clear_the_way(now_s)
        return out + self._next_round(now_s) if out or self.state is CoordinatorState.PAUSED else []

    def _change(self, name: str, action: Action, now_s: float) -> list[Envelope]:
        """Change a task. A pause lets a round end that reports and sets a buffer aside, a cancellation ends both."""
        task = self._book.change(name, action)
        own = next((a for a in self._attempts() if a.work.task.name == name), None)
        out: list[Envelope] = []
        if own is not None and (action is Action.CANCEL or own.state is RoundState.SELECTING):
            out = self._stop(own, task.state.value, now_s)
        elif isinstance(own, Round):
            return self._take_back_wish()
        out += self._clear_the_way(now_s)
        return out if self._round is not None else out + self._next_round(now_s)

    def _roll_back(self, name: str, number: int, now_s: float) -> list[Envelope]:
        """Go back to an earlier version of the model, as a new one; a training round under way ends for it."""
        task = self._book.task(name)
        after(name, task.state, Action.ROLL_BACK)
        kept = self._storage.versions(self.population)
        version = next((v for v in reversed(kept) if v.round == number), None)
        if version is None:
            numbers = ", ".join(str(v.round) for v in kept) or "none"
            raise NotFoundError("version", expected=f"one that is kept: {numbers}", got=str(number))
        trainings = [a for a in self._attempts() if a.work.task.trains]
        out = [e for a in trainings for e in self._stop(a, "rolled_back", now_s)]
        row = empty_row(task, self.round, "rolled_back", f"to round {number}", version.checkpoint)
        self._book.roll_back(name, row, version)
        self.summaries += 1
        return out if self._round is not None else out + self._next_round(now_s)

    def _stop(self, current: Attempt, reason: str, now_s: float) -> list[Envelope]:
        """End the round that is under way, or a buffer, without the next one."""
        wanted = current.state is RoundState.SELECTING
        began = current.state is not RoundState.ENDED or current.tally.counted > 0
        out = current.abandon(reason, now_s)
        assert current.ended is not None
        if began:  # not of a buffer that was to come, and has nothing in it
            self._keep(current.ended)
        self._round = None if current is self._round else self._round
        self.buffer = None if current is self.buffer else self.buffer
        return [*out, *([Envelope(selector_address(self.population), WantNobody(current.name))] if wanted else [])]

    def _clear_the_way(self, now_s: float) -> list[Envelope]:
        """End the buffer of a task that is over; set one aside whose turn it is not, for it may take long to fill."""
        if (buffer := self.buffer) is None:
            return []
        task = buffer.work.task
        if not task.state.live:
            return self._stop(buffer, task.state.value, now_s)
        fills = buffer is self._round and buffer.state is RoundState.REPORTING
        if not fills or self._book.next_task(self._tried, now_s) == task.name:
            return []
        self._round = None
        return buffer.set_aside()
