"""One population's server in one process: the roles, their mailboxes, the clock, and the requests that wait.

The selector and the coordinator run on the event loop; the aggregators, in threads of their own, in ``server/shards``.
"""

import asyncio
import contextlib
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from covey.privacy.randomness import AesCtr
from covey.server.bodies import BlobCache, Buffers
from covey.server.clock import steady_clock
from covey.server.config import ServerConfig
from covey.server.coordinator import Coordinator, CoordinatorState
from covey.server.credentials import Credentials
from covey.server.engine import Engine
from covey.server.health import check_health, tell_stopped_clock
from covey.server.logs import tell_round
from covey.server.messages import (
    AbandonArrived,
    BytesServed,
    ChangeTask,
    CreateTask,
    DeviceLeft,
    Envelope,
    Reply,
    StepAwaited,
    coordinator_address,
    selector_address,
)
from covey.server.metrics import Metrics
from covey.server.participation import Aboard, Participation, already_in_round
from covey.server.reconnect import Reconnect
from covey.server.releasing import Releasing
from covey.server.selector import Selector, SelectorSettings
from covey.server.shards import Shards
from covey.server.tasks import TRAIN
from covey.server.tickets import Answer, Tickets, new_token
from covey.server.view import buffer_status, population_status
from covey.storage.interface import Storage
from covey.types.errors import AlreadyInRoundError, BusyError, CoveyError, NotFoundError, RoundClosedError
from covey.wire.administration import TaskStatus
from covey.wire.messages import Assignment, ComeBack, PopulationStatus, RoundSummary

__all__ = ["Service"]


class Service:
    """Drives the roles. Everything but :meth:`__init__` runs on one event loop."""

    def __init__(
        self,
        storage: Storage,
        config: ServerConfig,
        credentials: Credentials,
        *,
        now_s: Callable[[], float] | None = None,
        on_round: Callable[[RoundSummary], None] = lambda summary: None,
        directory: Path | None = None,
    ) -> None:
        """Put the roles together; :meth:`start` begins.

        Args:
            storage: what the server keeps; it holds the population.
            config: how it serves.
            credentials: who may come in.
            now_s: the clock, seconds since 1970; None: one that no setting of the machine's moves.
            on_round: gets every round that ends, on the event loop: it must be quick.
            directory: with what releases are signed by; None: there are no releases.
        """
        self.population = config.population
        self.credentials = credentials
        self.config = config
        self.now_s = now_s or steady_clock()
        self.coordinator = Coordinator(
            self.population,
            storage,
            new_token=new_token,
            num_shards=config.num_shards,
            noise=AesCtr(os.urandom(32), private=True),
        )
        self.reconnect = Reconnect.steered(config)
        self.participation, self.aboard = Participation(), Aboard()
        waiting = SelectorSettings(config.poll_s, config.max_waiting)
        self.selector = Selector(self.population, waiting, random.SystemRandom())
        self._engine = Engine(
            {
                selector_address(self.population): self.selector,
                coordinator_address(self.population): self.coordinator,
            }
        )
        self.shards = Shards(
            self.population,
            config.num_shards,
            step_timeout_s=lambda task: self.coordinator.settings(task).round.step_timeout_s,
            unmask_workers=config.unmask_workers,
            deliver=lambda envelopes: self._dispatch(self._engine.deliver(envelopes, self.now_s())),
            now_s=self.now_s,
        )
        self._storage = storage
        self._on_round = on_round
        self._num_told = self.coordinator.summaries
        self.buffers = Buffers(config.buffers)
        self._tickets = Tickets()
        self._blobs = BlobCache(storage)
        self._changed = asyncio.Event()
        self._wakes_at_s = math.inf
        self._stopping = False
        self._ticker: asyncio.Task[None] | None = None
        self.metrics = Metrics()
        self.releasing = Releasing(storage, directory, config, self._administer_later, self.metrics, self.now_s)
        self.metrics.watch(
            lambda: self.selector.num_waiting,
            lambda: self.coordinator.round,
            lambda: self.releasing.desk.version,
            lambda: buffer_status(self.coordinator),
        )
        self._open_shards()

    @property
    def max_body_bytes(self) -> int:
        """The largest body that any task's plan allows."""
        return self.shards.max_body_bytes

    def start(self) -> None:
        """Begin the first round and keep the time."""
        self.releasing.start()
        self._dispatch(self._engine.deliver(self.coordinator.start(self.now_s()), self.now_s()))
        self._ticker = asyncio.create_task(self._keep_time())
        self._ticker.add_done_callback(tell_stopped_clock)

    def stop(self) -> None:
        """Send everybody who waits away; safe to call twice."""
        self._stopping = True
        self._changed.set()
        self._dispatch(self.selector.dismiss("restarting"))
        # The sums that they wait for die with this process.
        self._tickets.fail_polls(RoundClosedError("secure sum", expected="a server that goes on", got="none"))

    async def close(self) -> None:
        """Stop the clock and the aggregators; their sums die with them."""
        self.stop()
        if self._ticker is not None:
            # Not cancelled: wait_for loses a cancellation that meets the event it waits for, as here after stop().
            await self._ticker
        self.shards.close()

    # Requests

    def come_back_now(self) -> ComeBack | None:
        """Return the answer for a device that cannot be used now, or None if it may wait."""
        if self._stopping:
            return self._come_back("restarting")
        if self.coordinator.state is CoordinatorState.PAUSED:
            return self._come_back("paused")
        return None

    def ask_selector(self, message: Callable[[str], Any], subject: str) -> tuple[str, Answer]:
        """Send ``message(ticket)`` to the selector; return the ticket and the answer to come.

        Whoever waits already under the same ``subject`` of a credential is refused: it has one place.

        Raises:
            AlreadyInRoundError: it trains for the buffer that is filling, or is in it: it would wait in vain.
        """
        if self.coordinator.filling and self.aboard.has(subject, self.now_s()):
            raise self._stamped(already_in_round())
        ticket, answer = self._tickets.take()
        self.reconnect.observe_checkin(self.now_s())
        if former := self.participation.arrived(ticket, subject):
            self._answer(former, Reply(already_in_round()))
            self._send(selector_address(self.population), DeviceLeft(former))
        self._send(selector_address(self.population), message(ticket))
        return ticket, answer

    def leave(self, ticket: str) -> None:
        """Note that a request's client hung up."""
        self._tickets.drop(ticket)
        self.participation.left(ticket)
        self._send(selector_address(self.population), DeviceLeft(ticket))

    def await_step(self, session: str, step: str) -> tuple[str, Answer]:
        """Ask for what a step of a secure sum leads to; return the ticket, for :meth:`give_up`, and the answer to come.

        Raises:
            SessionUnknownError: see :meth:`ask_aggregator`.
        """
        place = self.shards.place(session)
        ticket, answer = self._tickets.take(poll=True)
        self.shards.post(place, StepAwaited(ticket, session, step))
        return ticket, answer

    def give_up(self, ticket: str) -> None:
        """Stop waiting for a ticket's answer; it goes nowhere when it comes."""
        self._tickets.drop(ticket)

    def ask_aggregator(self, session: str, message: Callable[[str], Any]) -> Answer:
        """Send ``message(ticket)`` to the aggregator that holds ``session``; return the answer to come.

        Raises:
            SessionUnknownError: no aggregator of this process ever held it.
        """
        place = self.shards.place(session)
        ticket, answer = self._tickets.take(session=session)
        self.shards.post(place, message(ticket))
        return answer

    def check_health(self) -> None:
        """Check that the storage answers and the clock runs.

        Raises:
            UnhealthyError: says which of them does not.
        """
        check_health(self._ticker, lambda: self._storage.load(self.population))

    async def administer(self, message: Callable[[str], CreateTask | ChangeTask]) -> TaskStatus:
        """Send ``message(ticket)`` to the coordinator; return how the task stands then.

        Raises:
            CoveyError: what was asked cannot be done; nothing changed.
        """
        ticket, answer = self._tickets.take()
        self._send(coordinator_address(self.population), message(ticket))
        self._open_shards()
        status: TaskStatus = await answer
        return status

    def take_buffer(self) -> bytearray:
        """Take one of the few buffers for report bodies; whoever takes it gives it back to ``buffers``.

        Raises:
            BusyError: all are in use.
        """
        try:
            return self.buffers.take(self.max_body_bytes)
        except BusyError as busy:
            raise self._stamped(busy) from None

    def deliver(self, session: str, buffer: bytearray, used: int, message: Callable[[str, memoryview], Any]) -> Answer:
        """Send ``message(ticket, body)`` to the aggregator that holds ``session``; return the answer to come.

        The body lies in a buffer of :meth:`take_buffer`, which goes back by itself.

        Raises:
            SessionUnknownError: see :meth:`ask_aggregator`; the buffer stays with the caller.
        """
        body = memoryview(buffer)[:used]
        answer = self.ask_aggregator(session, lambda ticket: message(ticket, body))

        def done() -> None:
            body.release()
            self.buffers.give(buffer, used)

        self.shards.after_post(self.shards.place(session), done)
        return answer

    def blob(self, sha256: str, *, counted: bool, start: int = 0) -> bytes:
        """Return a plan or checkpoint; ``counted``: a device takes it from ``start`` on, which the round counts."""
        data = self._blobs.get(sha256)
        if counted:
            self._send(coordinator_address(self.population), BytesServed(max(0, len(data) - start)))
        return data

    def status(self, population: str, after: int) -> PopulationStatus:
        """Return the public state, with the summaries after the first ``after``.

        Raises:
            NotFoundError: another population.
        """
        if population != self.population:
            raise NotFoundError("population", expected="one that this server serves", got="another name")
        return population_status(
            self.coordinator,
            self._storage,
            self.releasing.desk,
            waiting=self.selector.num_waiting,
            after=after,
            now_s=self.now_s(),
        )

    def _come_back(self, reason: str) -> ComeBack:
        answer = self._stamped(ComeBack(retry_after_s=0.0, reason=reason))
        assert isinstance(answer, ComeBack)
        return answer

    def _stamped(self, message: Any) -> Any:
        """Fill in when a device shall come again: the only place where that is decided."""
        now_s = self.now_s()
        self.reconnect.observe_wish(self.selector.wish, now_s)
        return self.reconnect.stamped(message, now_s, self.coordinator.expected_at_s)

    # Routing

    def _send(self, to: str, message: Any) -> None:
        self._dispatch(self._engine.send(to, message, self.now_s()))

    def _dispatch(self, envelopes: list[Envelope]) -> None:
        """Carry what left the engine to where it belongs."""
        if self._due_s() < self._wakes_at_s:
            self._changed.set()  # else the clock sleeps on: to wake it for every check-in costs as much as to answer it
        if self.coordinator.summaries > self._num_told:
            self.participation.end()
        for envelope in envelopes:
            kind, _, rest = envelope.to.partition("/")
            if kind == "device":
                self._answer(rest, envelope.message)
            else:
                assert kind == "aggregator", f"nobody lives at {kind}"
                _, task, shard = rest.split("/")
                self.shards.add(task, self.coordinator.manifest(task))
                self.shards.post((task, int(shard)), envelope.message)
        if self.coordinator.summaries > self._num_told:
            for summary in self._storage.rounds(self.population, self._num_told):
                self._tell(summary)
            self._num_told = self.coordinator.summaries
        if self.coordinator.buffer is None:
            self.aboard.end()

    def _answer(self, ticket: str, message: Reply) -> None:
        self.aboard.landed(self._tickets.session(ticket), message.number)
        subject = self.participation.left(ticket)
        answer = self._tickets.waiting(ticket)
        if isinstance(message.message, Assignment):
            message = self._once(message.message, subject)
        if answer is None:
            return  # the client hung up; its session ends at the deadline
        stamped = self._stamped(message.message)
        if isinstance(stamped, CoveyError):
            answer.set_exception(stamped)
        else:
            answer.set_result(stamped)

    def _tell(self, row: RoundSummary) -> None:
        """Tell of a round that ended whoever wants to know."""
        if row.kind == TRAIN:
            self.aboard.committed(row.round)
        self._on_round(row)
        self.metrics.round_ended(row)
        tell_round(row)
        self.releasing.round_ended(row)

    def _administer_later(self, message: CreateTask | ChangeTask, refused: Callable[[CoveyError], None]) -> None:
        """Send a message to the coordinator when what is at hand is done; call ``refused`` if it is not done."""

        def send() -> None:
            if self._stopping:
                return
            ticket, answer = self._tickets.take()
            answer.add_done_callback(answered)
            self._send(coordinator_address(self.population), replace(message, ticket=ticket))
            self._open_shards()

        def answered(answer: Answer) -> None:
            if not answer.cancelled() and isinstance(error := answer.exception(), CoveyError):
                refused(error)

        asyncio.get_running_loop().call_soon(send)

    def _once(self, given: Assignment, subject: str) -> Reply:
        """Let a device take part once in a round; a second session of the same one ends before it begins."""
        now_s = self.now_s()
        try:
            if (buffer := self.coordinator.buffer) is not None and buffer.work.task.name == given.task:
                self.aboard.embark(given.session, subject, now_s + given.report_within_s, now_s)
            else:
                self.participation.admit(f"{given.task}/{given.public_seed}/{given.phase}", subject)
        except AlreadyInRoundError as error:
            self.shards.post(self.shards.place(given.session), AbandonArrived(new_token(), given.session, error.code))
            return Reply(error)
        return Reply(given)

    def _open_shards(self) -> None:
        """Make aggregators for tasks that are new."""
        for task in self.coordinator.tasks():
            self.shards.add(task.task, self.coordinator.manifest(task.task))

    async def _keep_time(self) -> None:
        while not self._stopping:
            self._changed.clear()
            self._wakes_at_s = self._due_s()
            wait_s = None if self._wakes_at_s == math.inf else max(0.0, self._wakes_at_s - self.now_s())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
            if out := self._engine.tick(self.now_s()):
                self._dispatch(out)
            await self.shards.tick()

    def _due_s(self) -> float:
        """Return when something is next due; infinity: never."""
        engine = self._engine.next_deadline_s()
        return min([*self.shards.deadlines(), *([] if engine is None else [engine])], default=math.inf)
