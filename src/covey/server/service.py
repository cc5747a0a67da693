"""One population's server in one process: the roles, their mailboxes, the clock, and the requests that wait.

The selector and the coordinator run on the event loop. Each aggregator has a mailbox and a thread of its own, so that
folding an update of many megabytes never holds up a check-in; what it answers comes back to the loop.
"""

import asyncio
import contextlib
import os
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from covey.plans.manifest import Manifest
from covey.plans.plan import unpack_plan
from covey.privacy.randomness import AesCtr
from covey.server.aggregator import Aggregator
from covey.server.config import ServerConfig
from covey.server.coordinator import Coordinator, CoordinatorState
from covey.server.credentials import Credentials
from covey.server.engine import Engine
from covey.server.messages import (
    BytesServed,
    DeviceLeft,
    Envelope,
    Reply,
    StepAwaited,
    coordinator_address,
    selector_address,
)
from covey.server.reconnect import Reconnect
from covey.server.secure import SecureAggregator
from covey.server.selector import Selector, SelectorSettings
from covey.server.settings import RoundSettings
from covey.storage.interface import PopulationRecord, Storage
from covey.types.errors import (
    BusyError,
    CoveyError,
    NotFoundError,
    RoundClosedError,
    SessionUnknownError,
    UsageError,
)
from covey.types.tensors import packed_num_bytes
from covey.wire.messages import ComeBack, PopulationStatus, RoundSummary

__all__ = ["Service", "load_population"]

_CACHED_BLOBS = 4
_AGAIN = "check in again"
_TASKS_FOR_EACH = 4
"""Parts of an unmasking for each worker, so that none is left with the last one."""


def load_population(storage: Storage, directory: Path, config: ServerConfig) -> PopulationRecord:
    """Return where the population stands; a new one is made from the files that ``config`` names.

    Raises:
        UsageError: a file that is missing, a checkpoint of another model, or a plan other than the one that the
            population was begun with.
        PlanError: the plan is not valid.
    """
    data = _read(directory / config.plan)
    plan = unpack_plan(data)
    record = storage.load(config.population)
    if record is None:
        signature = _read(directory / config.signature).decode("ascii", "replace").strip()
        checkpoint = _read(directory / config.checkpoint)
        if len(checkpoint) != (needed := packed_num_bytes(plan.manifest.params)):
            raise UsageError(
                f"file {directory / config.checkpoint}",
                expected=f"the plan's parameters, {needed} bytes",
                got=f"{len(checkpoint)} bytes",
            )
        record = PopulationRecord(config.population, storage.put_blob(data), signature, 0, storage.put_blob(checkpoint))
        storage.create(record)
    elif record.plan != plan.hash:
        raise UsageError(
            f"population {config.population!r}",
            expected=f"the plan that it was begun with, {record.plan[:12]}…",
            got=f"{plan.hash[:12]}… in {directory / config.plan}",
            hint="give the new plan a population, or a directory, of its own",
        )
    return record


class Service:
    """Drives the roles. Everything but :meth:`__init__` runs on one event loop."""

    def __init__(
        self,
        record: PopulationRecord,
        storage: Storage,
        config: ServerConfig,
        credentials: Credentials,
        *,
        now_s: Callable[[], float] = time.time,
        on_round: Callable[[RoundSummary], None] = lambda summary: None,
    ) -> None:
        """Put the roles together; :meth:`start` begins.

        Args:
            record: where the population stands.
            storage: what the server keeps.
            config: how it serves.
            credentials: who may come in.
            now_s: the clock.
            on_round: gets every round that ends, on the event loop: it must be quick.
        """
        population = record.population
        manifest = unpack_plan(storage.blob(record.plan)).manifest
        settings = RoundSettings(**msgspec.structs.asdict(config.round))
        self.population = population
        self.credentials = credentials
        self.config = config
        self.now_s = now_s
        self.mode = manifest.privacy.mode
        self.coordinator = _coordinator(record, manifest, storage, settings, config.num_shards)
        waiting = SelectorSettings(config.poll_s, config.max_waiting)
        self.reconnect = Reconnect(config.retry_s)
        self.selector = Selector(population, waiting, random.SystemRandom())
        self._engine = Engine(
            {selector_address(population): self.selector, coordinator_address(population): self.coordinator}
        )
        self._unmasking: ProcessPoolExecutor | None = None
        if self.mode == "secure" and config.unmask_workers:
            # Processes, because the cryptography holds the interpreter's lock; spawned, because this one has threads.
            self._unmasking = ProcessPoolExecutor(config.unmask_workers, get_context("spawn"))
        self._aggregators: list[Aggregator | SecureAggregator] = [
            SecureAggregator(
                population,
                manifest,
                chance=random.SystemRandom(),
                step_timeout_s=config.round.step_timeout_s,
                executor=self._unmasking,
                num_tasks=max(1, _TASKS_FOR_EACH * config.unmask_workers),
            )
            if self.mode == "secure"
            else Aggregator(population, manifest)
            for _ in range(config.num_shards)
        ]
        self._mailboxes = [ThreadPoolExecutor(1, f"aggregator-{i}") for i in range(config.num_shards)]
        self.max_body_bytes = self._aggregators[0].max_body_bytes
        self._manifest = manifest
        self._storage = storage
        self._on_round = on_round
        self._num_told = self.coordinator.summaries
        self._buffers: deque[bytearray] = deque()
        self._num_buffers = 0
        self._shard_of: dict[str, int] = {}
        self._polls: dict[str, asyncio.Future[Any]] = {}
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._blobs: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self._ticker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the first round and keep the time."""
        self._dispatch(self._engine.deliver(self.coordinator.start(self.now_s()), self.now_s()))
        self._ticker = asyncio.create_task(self._keep_time())

    def stop(self) -> None:
        """Send everybody who waits away; safe to call twice."""
        self._stopping = True
        self._dispatch(self.selector.dismiss("restarting"))
        for answer in self._polls.values():
            if not answer.done():  # its sum dies with this process
                answer.set_exception(
                    RoundClosedError("secure sum", expected="a server that goes on", got="one that stops", hint=_AGAIN)
                )

    async def close(self) -> None:
        """Stop the clock and the aggregators; their sums die with them."""
        self.stop()
        if self._ticker is not None:
            # Not cancelled: wait_for loses a cancellation that meets the event it waits for, as here after stop().
            await self._ticker
        for mailbox in self._mailboxes:
            mailbox.shutdown(wait=True, cancel_futures=True)
        if self._unmasking is not None:
            self._unmasking.shutdown(wait=True, cancel_futures=True)

    # Requests

    def come_back_now(self) -> ComeBack | None:
        """Return the answer for a device that cannot be used now, or None if it may wait."""
        if self._stopping:
            return self._come_back("restarting")
        if self.coordinator.state is CoordinatorState.PAUSED:
            return self._come_back("paused")
        return None

    def ask_selector(self, message: Callable[[str], Any]) -> tuple[str, "asyncio.Future[Any]"]:
        """Send ``message(ticket)`` to the selector; return the ticket and the answer to come."""
        ticket, answer = self._ticket()
        self._send(selector_address(self.population), message(ticket))
        return ticket, answer

    def leave(self, ticket: str) -> None:
        """Note that a request's client hung up."""
        self._waiting.pop(ticket, None)
        self._send(selector_address(self.population), DeviceLeft(ticket))

    def await_step(self, session: str, step: str) -> tuple[str, "asyncio.Future[Any]"]:
        """Ask for what a step of a secure sum leads to; return the ticket, for :meth:`give_up`, and the answer to come.

        Raises:
            SessionUnknownError: see :meth:`ask_aggregator`.
        """
        shard = self._shard(session)
        ticket, answer = self._ticket()
        self._polls[ticket] = answer
        self._post(shard, StepAwaited(ticket, session, step))
        return ticket, answer

    def give_up(self, ticket: str) -> None:
        """Stop waiting for a ticket's answer; it goes nowhere when it comes."""
        self._waiting.pop(ticket, None)
        self._polls.pop(ticket, None)

    def ask_aggregator(self, session: str, message: Callable[[str], Any]) -> "asyncio.Future[Any]":
        """Send ``message(ticket)`` to the aggregator that holds ``session``; return the answer to come.

        Raises:
            SessionUnknownError: no aggregator of this process ever held it.
        """
        shard = self._shard(session)
        ticket, answer = self._ticket()
        self._post(shard, message(ticket))
        return answer

    def _shard(self, session: str) -> int:
        shard = self._shard_of.get(session)
        if shard is None:
            raise SessionUnknownError(
                "session", expected="a session of this server", got="an unknown one", hint="check in again"
            )
        return shard

    def take_buffer(self) -> bytearray:
        """Take one of the few buffers for report bodies; whoever takes it gives it back.

        Raises:
            BusyError: all are in use.
        """
        if self._buffers:
            return self._buffers.pop()
        if self._num_buffers >= self.config.buffers:
            busy = BusyError("report", expected="a free buffer", got="all in use", hint="try again shortly")
            raise self._stamped(busy)
        self._num_buffers += 1
        return bytearray(self.max_body_bytes)

    def give_buffer(self, buffer: bytearray, used: int) -> None:
        """Overwrite what was used and put the buffer back."""
        buffer[:used] = bytes(used)
        self._buffers.append(buffer)

    def deliver(
        self, session: str, buffer: bytearray, used: int, message: Callable[[str, memoryview], Any]
    ) -> "asyncio.Future[Any]":
        """Send ``message(ticket, body)`` to the aggregator that holds ``session``; return the answer to come.

        The body lies in a buffer of :meth:`take_buffer`, which goes back by itself.

        Raises:
            SessionUnknownError: see :meth:`ask_aggregator`; the buffer stays with the caller.
        """
        body = memoryview(buffer)[:used]
        answer = self.ask_aggregator(session, lambda ticket: message(ticket, body))

        def done() -> None:
            body.release()
            self.give_buffer(buffer, used)

        # The mailbox works in order: when this empty job runs, the fold before it is over, come what may.
        job = asyncio.get_running_loop().run_in_executor(self._mailboxes[self._shard_of[session]], _nothing)
        job.add_done_callback(lambda _: done())
        return answer

    def blob(self, sha256: str, *, counted: bool, start: int = 0) -> bytes:
        """Return a plan or checkpoint; ``counted``: a device takes it from ``start`` on, which the round counts."""
        if sha256 not in self._blobs:
            data = self._storage.blob(sha256)
            while len(self._blobs) >= _CACHED_BLOBS:
                del self._blobs[next(iter(self._blobs))]
            self._blobs[sha256] = data
        data = self._blobs[sha256]
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
        coordinator = self.coordinator
        return PopulationStatus(
            population=population,
            task=self._manifest.task,
            state=coordinator.state.value,
            round=coordinator.round,
            waiting=self.selector.num_waiting,
            plan=coordinator.plan,
            checkpoint=coordinator.checkpoint,
            mode=self.mode,
            min_cohort=self._manifest.privacy.min_cohort,
            rounds=self._storage.rounds(population, max(0, after)),
        )

    def _come_back(self, reason: str) -> ComeBack:
        answer = self._stamped(ComeBack(retry_after_s=0.0, reason=reason))
        assert isinstance(answer, ComeBack)
        return answer

    def _stamped(self, message: Any) -> Any:
        """Fill in when a device shall come again: the only place where that is decided."""
        return self.reconnect.stamped(message, self.now_s())

    # Routing

    def _ticket(self) -> tuple[str, "asyncio.Future[Any]"]:
        ticket = _token()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        return ticket, answer

    def _send(self, to: str, message: Any) -> None:
        self._dispatch(self._engine.send(to, message, self.now_s()))

    def _dispatch(self, envelopes: list[Envelope]) -> None:
        """Carry what left the engine to where it belongs."""
        self._changed.set()
        for envelope in envelopes:
            kind, _, rest = envelope.to.partition("/")
            if kind == "device":
                self._answer(rest, envelope.message)
            else:
                assert kind == "aggregator", f"nobody lives at {kind}"
                self._post(int(rest.rpartition("/")[2]), envelope.message)
        if self.coordinator.summaries > self._num_told:
            for summary in self._storage.rounds(self.population, self._num_told):
                self._on_round(summary)
            self._num_told = self.coordinator.summaries

    def _answer(self, ticket: str, message: Reply) -> None:
        answer = self._waiting.pop(ticket, None)
        if answer is None or answer.done():
            return  # the client hung up; its session ends at the deadline
        stamped = self._stamped(message.message)
        if isinstance(stamped, CoveyError):
            answer.set_exception(stamped)
        else:
            answer.set_result(stamped)

    def _post(self, shard: int, message: Any) -> None:
        """Put a message into an aggregator's mailbox; what it causes is routed when it is done."""
        role = self._aggregators[shard]
        for session in getattr(message, "sessions", ()):
            self._shard_of[session] = shard
        while len(self._shard_of) > _REMEMBERED_SESSIONS:
            del self._shard_of[next(iter(self._shard_of))]
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._mailboxes[shard], role.receive, message, self.now_s())
        job.add_done_callback(self._posted)

    def _posted(self, job: "asyncio.Future[list[Envelope]]") -> None:
        if not job.cancelled():
            self._dispatch(self._engine.deliver(job.result(), self.now_s()))

    async def _keep_time(self) -> None:
        while not self._stopping:
            self._changed.clear()
            due_s = min(self._deadlines(), default=None)
            wait_s = None if due_s is None else max(0.0, due_s - self.now_s())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
            if out := self._engine.tick(self.now_s()):
                self._dispatch(out)
            for shard, role in enumerate(self._aggregators):
                if (due_s := role.next_deadline_s()) is not None and due_s <= self.now_s():
                    await self._tick_aggregator(shard)

    def _deadlines(self) -> list[float]:
        roles = (self._engine, *self._aggregators)
        return [due_s for role in roles if (due_s := role.next_deadline_s()) is not None]

    async def _tick_aggregator(self, shard: int) -> None:
        """Let an aggregator end what is due, in its own thread and after what is in its mailbox."""
        loop, role = asyncio.get_running_loop(), self._aggregators[shard]
        out = await loop.run_in_executor(self._mailboxes[shard], role.tick, self.now_s())
        self._dispatch(self._engine.deliver(out, self.now_s()))


_REMEMBERED_SESSIONS = 1_000_000


def _nothing() -> None:
    pass


def _coordinator(
    record: PopulationRecord, manifest: Manifest, storage: Storage, settings: RoundSettings, num_shards: int
) -> Coordinator:
    noise = AesCtr(os.urandom(32), private=True)
    return Coordinator(record, manifest, storage, settings, new_token=_token, num_shards=num_shards, noise=noise)


def _token() -> str:
    return secrets.token_urlsafe(24)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(
            f"file {path}", expected="a readable file", got=e.strerror or "an error", hint="`covey init DIR` makes it"
        ) from e
