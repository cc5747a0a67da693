"""The aggregators of one server process: one for each task and shard, with a mailbox and a thread for each shard.

Folding an update of many megabytes never holds up a check-in: a mailbox takes its messages in order, in its own thread,
and what they cause comes back to the event loop.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

from covey.plans.manifest import Manifest
from covey.server.aggregator import Aggregator
from covey.server.messages import Envelope
from covey.server.secure import SecureAggregator
from covey.types.errors import SessionUnknownError

__all__ = ["Shards"]

_TASKS_FOR_EACH = 4
"""Parts of an unmasking for each worker, so that none is left with the last one."""

_REMEMBERED_SESSIONS = 1_000_000

_Place = tuple[str, int]


class Shards:
    """Holds the aggregators and knows which of them holds a session. Driven by one event loop."""

    def __init__(
        self,
        population: str,
        num_shards: int,
        *,
        step_timeout_s: Callable[[str], float],
        unmask_workers: int,
        deliver: Callable[[list[Envelope]], None],
        now_s: Callable[[], float],
    ) -> None:
        """Begin without tasks.

        Args:
            population: whose coordinator is told.
            num_shards: of every task.
            step_timeout_s: how long a step of a task's secure sums may take.
            unmask_workers: processes that take masks off; 0: the aggregator's own thread does.
            deliver: gets, on the event loop, what an aggregator answers.
            now_s: the clock.
        """
        self._population = population
        self._step_timeout_s = step_timeout_s
        self._unmask_workers = unmask_workers
        self._deliver, self._now_s = deliver, now_s
        self._roles: dict[_Place, Aggregator | SecureAggregator] = {}
        self._modes: dict[str, str] = {}
        self._mailboxes = [ThreadPoolExecutor(1, f"aggregator-{i}") for i in range(num_shards)]
        self._unmasking: ProcessPoolExecutor | None = None
        self._place_of: dict[str, _Place] = {}
        self.max_body_bytes = 0

    def add(self, task: str, manifest: Manifest) -> None:
        """Make a task's aggregators; a task that has them is left alone."""
        if task in self._modes:
            return
        self._modes[task] = manifest.privacy.mode
        for shard in range(len(self._mailboxes)):
            self._roles[task, shard] = self._make(task, manifest)
        self.max_body_bytes = max(self.max_body_bytes, self._roles[task, 0].max_body_bytes)

    def place(self, session: str) -> _Place:
        """Return the task and the shard that hold a session.

        Raises:
            SessionUnknownError: no aggregator of this process ever held it.
        """
        place = self._place_of.get(session)
        if place is None:
            raise SessionUnknownError(
                "session", expected="a session of this server", got="an unknown one", hint="check in again"
            )
        return place

    def mode(self, session: str) -> str:
        """Return the mode of a session's task. Raises SessionUnknownError."""
        return self._modes[self.place(session)[0]]

    def post(self, place: _Place, message: Any) -> None:
        """Put a message into an aggregator's mailbox; what it causes is delivered when it is done."""
        for session in getattr(message, "sessions", ()):
            self._place_of[session] = place
        while len(self._place_of) > _REMEMBERED_SESSIONS:
            del self._place_of[next(iter(self._place_of))]
        role, mailbox = self._roles[place], self._mailboxes[place[1]]
        job = asyncio.get_running_loop().run_in_executor(mailbox, role.receive, message, self._now_s())
        job.add_done_callback(self._posted)

    def after_post(self, place: _Place, then: Callable[[], None]) -> None:
        """Call ``then`` when everything that was posted so far is over, come what may."""
        job = asyncio.get_running_loop().run_in_executor(self._mailboxes[place[1]], _nothing)
        job.add_done_callback(lambda _: then())

    def deadlines(self) -> Iterator[float]:
        """Return when steps of secure sums end."""
        return (due_s for role in self._roles.values() if (due_s := role.next_deadline_s()) is not None)

    async def tick(self) -> None:
        """Let aggregators end what is due, each in its own thread and after what is in its mailbox."""
        for place, role in list(self._roles.items()):
            if (due_s := role.next_deadline_s()) is not None and due_s <= self._now_s():
                loop = asyncio.get_running_loop()
                self._deliver(await loop.run_in_executor(self._mailboxes[place[1]], role.tick, self._now_s()))

    def close(self) -> None:
        """End the threads and processes; the sums die with them."""
        for mailbox in self._mailboxes:
            mailbox.shutdown(wait=True, cancel_futures=True)
        if self._unmasking is not None:
            self._unmasking.shutdown(wait=True, cancel_futures=True)

    def _posted(self, job: "asyncio.Future[list[Envelope]]") -> None:
        if not job.cancelled():
            self._deliver(job.result())

    def _make(self, task: str, manifest: Manifest) -> Aggregator | SecureAggregator:
        if manifest.privacy.mode != "secure":
            return Aggregator(self._population, manifest)
        if self._unmask_workers and self._unmasking is None:
            # Processes, because the cryptography holds the interpreter's lock; spawned, because this one has threads.
            self._unmasking = ProcessPoolExecutor(self._unmask_workers, get_context("spawn"))
        return SecureAggregator(
            self._population,
            manifest,
            chance=random.SystemRandom(),
            step_timeout_s=self._step_timeout_s(task),
            executor=self._unmasking,
            num_tasks=max(1, _TASKS_FOR_EACH * self._unmask_workers),
        )


def _nothing() -> None:
    pass
