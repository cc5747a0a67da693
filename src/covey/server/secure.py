"""The aggregator of a secure round: it folds masked updates and can open nothing but the sum of a whole group.

Devices say that they are ready once they have trained; until then nothing is masked, so that dropouts of the short
protocol alone count against its thresholds. When the coordinator closes the shard, the devices that are ready are dealt
into groups, and each group takes the steps of :mod:`covey.secagg`. A step ends when everybody who is still there has
answered, or at its deadline; a group that falls under a threshold is discarded alone.

::

    device      ready -> advertise -> share -> mask -> (consistency, if the server may be active) -> unmask
    coordinator        ^ CloseShard                                                             ShardClosed ^
"""

import math
import random
from collections.abc import MutableSet
from concurrent.futures import Executor
from typing import Any

from covey.plans.manifest import Manifest, SecureTerms
from covey.secagg import Server, Step
from covey.server.groups import Group, Shard, deal, late, sum_session, unbound
from covey.server.messages import (
    AbandonArrived,
    CloseShard,
    Counted,
    DiscardShard,
    Envelope,
    Lost,
    OpenShard,
    Reply,
    ShardClosed,
    StepArrived,
    StepAwaited,
    coordinator_address,
    device_address,
)
from covey.types.errors import (
    AlreadyCountedError,
    CoveyError,
    RoundClosedError,
    SecAggError,
    SessionUnknownError,
    StateError,
)
from covey.types.segments import Segment, SegmentSum
from covey.wire.messages import Abandoned, Joined, Reported, Taken

__all__ = ["SecureAggregator"]

_REMEMBERED = 10_000
"""How many ended sessions are remembered, so that a late device learns why it is late."""


class SecureAggregator:
    """One shard's role in secure mode.

    Laws: no coordinate of any update is ever here without its masks; a masked update is folded at most once; a sum is
    opened for a whole group of at least ``min_cohort`` devices, or not at all.
    """

    def __init__(
        self,
        population: str,
        manifest: Manifest,
        *,
        chance: random.Random,
        step_timeout_s: float = 30.0,
        executor: Executor | None = None,
        num_tasks: int = 1,
    ) -> None:
        """Begin without a round.

        Args:
            population: whose coordinator is told.
            manifest: of the plan whose updates are folded; its terms are secure.
            chance: who is in a group with whom; the operating system's, except in a simulation.
            step_timeout_s: how long a step of the protocol may take.
            executor: of processes, for taking masks off; None does it here.
            num_tasks: into how many parts that work is cut.
        """
        assert manifest.privacy.secure is not None, "a plan in secure mode has its terms"
        self._population = population
        self._to = coordinator_address(population)
        self._manifest = manifest
        self._terms: SecureTerms = manifest.privacy.secure
        self._chance = chance
        self._step_timeout_s = step_timeout_s
        self._executor, self._num_tasks = executor, num_tasks
        self._used: MutableSet[bytes] = set()
        self._shards: dict[str, Shard] = {}
        self._attempt_of: dict[str, str] = {}
        self._over: dict[str, type[CoveyError]] = {}
        self._deadline_s: float | None = None

    @property
    def max_body_bytes(self) -> int:
        """The largest body of any step in any phase."""
        return max(
            sum_session(self._manifest, unbound(phase), self._population, group=0).max_message_bytes
            for phase in range(len(self._manifest.phases))
        )

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take OpenShard, StepArrived, StepAwaited, AbandonArrived, CloseShard or DiscardShard."""
        out = self._receive(message, now_s)
        self._keep_deadline()
        return out

    def next_deadline_s(self) -> float | None:
        """Return when a group's step ends. Safe to ask from another thread."""
        return self._deadline_s

    def tick(self, now_s: float) -> list[Envelope]:
        """End the steps whose time is up."""
        out: list[Envelope] = []
        for attempt, shard in list(self._shards.items()):
            for group in list(shard.groups):
                if now_s >= group.deadline_s:
                    out += self._advance(attempt, shard, group, now_s)
        self._keep_deadline()
        return out

    def _receive(self, message: Any, now_s: float) -> list[Envelope]:
        match message:
            case OpenShard(attempt=attempt, sessions=sessions, offer=offer):
                assert offer is not None, "a secure sum is bound to what its devices were told"
                self._shards[attempt] = Shard(offer, set(sessions))
                self._attempt_of |= dict.fromkeys(sessions, attempt)
                return []
            case StepArrived():
                return self._arrived(message, now_s)
            case StepAwaited(ticket=ticket, session=session, step=step):
                return self._awaited(ticket, session, step)
            case AbandonArrived():
                return self._abandon(message, now_s)
            case CloseShard(attempt=attempt):
                return self._close(attempt, now_s)
            case DiscardShard(attempt=attempt):
                return self._discard(attempt)
        raise AssertionError(f"the aggregator does not take {type(message).__name__}")

    # What devices send

    def _arrived(self, message: StepArrived, now_s: float) -> list[Envelope]:
        to = device_address(message.ticket)
        try:
            attempt, shard = self._shard_of(message.session)
            if message.step == "ready":
                return self._ready(attempt, shard, message.session, to)
            group, index = self._place(shard, message.session)
            return self._accept(attempt, shard, group, index, message, now_s)
        except CoveyError as error:
            return [Envelope(to, Reply(error))]

    def _ready(self, attempt: str, shard: Shard, session: str, to: str) -> list[Envelope]:
        out = [Envelope(to, Reply(Taken(step="ready")))]
        if session not in shard.ready:
            if shard.groups:
                raise late()
            shard.ready[session] = None
            out.append(Envelope(self._to, Counted(attempt, 0)))
        return out

    def _accept(
        self, attempt: str, shard: Shard, group: Group, index: int, message: StepArrived, now_s: float
    ) -> list[Envelope]:
        to = device_address(message.ticket)
        if not group.take(index, message.step, message.body):
            return [Envelope(to, Reply(Taken(step=message.step)))]
        if message.step == "unmask":
            answer: Taken | Reported = Reported(counted=True, retry_after_s=0.0)
        else:
            answer = Taken(step=message.step)
        out = [Envelope(to, Reply(answer))]
        return out if group.missing() else out + self._advance(attempt, shard, group, now_s)

    def _awaited(self, ticket: str, session: str, step: str) -> list[Envelope]:
        to = device_address(ticket)
        try:
            _, shard = self._shard_of(session)
            if step == "ready":
                if session in shard.place:
                    return [Envelope(to, Reply(self._joined(shard, session)))]
                if session not in shard.ready:
                    raise StateError("secure step", expected="ready first", got="a wait")
                shard.ready[session] = ticket
                return []
            group, index = self._place(shard, session)
            if (outcome := group.outcome(index, step)) is not None:
                return [Envelope(to, Reply(outcome))]
            group.awaiting[index] = ticket
            return []
        except CoveyError as error:
            return [Envelope(to, Reply(error))]

    def _abandon(self, message: AbandonArrived, now_s: float) -> list[Envelope]:
        out = [Envelope(device_address(message.ticket), Reply(Abandoned(retry_after_s=0.0)))]
        try:
            attempt, shard = self._shard_of(message.session)
        except CoveyError:
            return out  # it is over either way, and that is what the device wants
        if message.session in shard.place:
            group, index = shard.place[message.session]
            group.gone.add(index)
            return out if group.missing() else out + self._advance(attempt, shard, group, now_s)
        shard.sessions.discard(message.session)
        self._end(message.session, RoundClosedError)
        if shard.ready.pop(message.session, "not ready") == "not ready":
            out.append(Envelope(self._to, Lost(attempt, message.reason)))
        return out

    def _shard_of(self, session: str) -> tuple[str, Shard]:
        attempt = self._attempt_of.get(session)
        if attempt is not None:
            return attempt, self._shards[attempt]
        match self._over.get(session):
            case None:
                raise SessionUnknownError(
                    "session", expected="an open session", got="an unknown one", hint="check in again"
                )
            case kind if kind is AlreadyCountedError:
                raise AlreadyCountedError("session", expected="one report", got="a second one")
        raise late()

    def _end(self, session: str, kind: type[CoveyError]) -> None:
        """Forget a session, but for why a late message of it is refused."""
        self._attempt_of.pop(session, None)
        self._over[session] = kind
        while len(self._over) > _REMEMBERED:
            del self._over[next(iter(self._over))]

    def _place(self, shard: Shard, session: str) -> tuple[Group, int]:
        if session not in shard.place:
            raise StateError("secure step", expected="a device that was dealt into a group", got="another")
        return shard.place[session]

    # Groups

    def _close(self, attempt: str, now_s: float) -> list[Envelope]:
        shard = self._shards.get(attempt)
        if shard is None:
            return []
        ready = list(shard.ready)
        self._chance.shuffle(ready)
        out: list[Envelope] = []
        for number, sessions in enumerate(deal(ready, self._terms.group_size, self._least())):
            facts = sum_session(self._manifest, shard.offer, self._population, group=number)
            server = Server(facts, used_sessions=self._used, now_s=int(now_s))
            group = Group(server, sessions, now_s + self._step_timeout_s)
            shard.groups.append(group)
            shard.place |= {session: (group, index) for index, session in enumerate(sessions)}
        for session in shard.sessions - set(shard.place):
            self._end(session, RoundClosedError)
        shard.sessions = set(shard.place)
        for session, ticket in shard.ready.items():
            if ticket is not None:
                known = self._joined(shard, session) if session in shard.place else late()
                out.append(Envelope(device_address(ticket), Reply(known)))
        for group in list(shard.groups):
            if not group.missing():
                out += self._advance(attempt, shard, group, now_s)
        return out

    def _joined(self, shard: Shard, session: str) -> Joined:
        group, index = shard.place[session]
        return Joined(group=group.server.session.group, index=index)

    def _advance(self, attempt: str, shard: Shard, group: Group, now_s: float) -> list[Envelope]:
        """End a group's step; open its sum after the last one."""
        waiting, group.awaiting = group.awaiting, {}
        try:
            group.told = group.server.close_step()
            if group.server.step is Step.OPEN:
                self._open(shard, group)
                return self._ended(attempt, shard, group, waiting, None)
        except SecAggError as error:
            return self._ended(attempt, shard, group, waiting, error)
        group.deadline_s = now_s + self._step_timeout_s
        out: list[Envelope] = []
        for index, ticket in waiting.items():
            known: Any = group.told.get(index, late())
            out.append(Envelope(device_address(ticket), Reply(known)))
        return out

    def _open(self, shard: Shard, group: Group) -> None:
        opened = group.server.open(self._executor, self._num_tasks)
        segments = self._segments(shard.offer.phase)
        sums = {s.name: values for s, values in zip(segments, opened.sums, strict=True)}
        shard.opened.append(SegmentSum.opened(segments, sums, len(opened.survivors)))
        for index in opened.survivors:
            shard.sessions.discard(group.sessions[index])
            self._end(group.sessions[index], AlreadyCountedError)

    def _ended(
        self, attempt: str, shard: Shard, group: Group, waiting: dict[int, str], error: SecAggError | None
    ) -> list[Envelope]:
        shard.groups.remove(group)
        shard.bytes_up += group.bytes_up
        shard.reason = shard.reason or (error.code if error is not None else "")
        group.server.discard()
        answer = error or late()
        out = [Envelope(device_address(ticket), Reply(answer)) for ticket in waiting.values()]
        if shard.groups:
            return out
        self._forget(attempt)
        total, *others = shard.opened or [SegmentSum(self._segments(shard.offer.phase))]
        for other in others:
            total.merge(other)
        closed = ShardClosed(attempt, total, bytes_up=shard.bytes_up, reason=shard.reason)
        return [*out, Envelope(self._to, closed)]

    def _discard(self, attempt: str) -> list[Envelope]:
        shard = self._forget(attempt)
        if shard is None:
            return []
        tickets = [t for t in shard.ready.values() if t is not None] if not shard.groups else []
        for group in shard.groups:
            group.server.discard()
            tickets += group.awaiting.values()
        for total in shard.opened:
            total.clear()
        return [Envelope(device_address(t), Reply(late())) for t in tickets]

    def _forget(self, attempt: str) -> Shard | None:
        shard = self._shards.pop(attempt, None)
        for session in shard.sessions if shard is not None else ():
            self._end(session, RoundClosedError)
        return shard

    def _segments(self, phase: int) -> tuple[Segment, ...]:
        return self._manifest.layout(phase)

    def _least(self) -> int:
        """Return the size of a group that opens although as many vanish as the plan assumes."""
        facts = sum_session(self._manifest, unbound(0), self._population, group=0)
        return math.ceil(facts.quorum / (1 - self._terms.dropout))

    def _keep_deadline(self) -> None:
        deadlines = [group.deadline_s for shard in self._shards.values() for group in shard.groups]
        self._deadline_s = min(deadlines, default=None)
