"""One simulated federation: the server's own roles on a virtual clock, with devices in worker processes.

Nothing here imitates the server: the selector draws the cohort, the coordinator keeps deadlines and commits, the
aggregators fold. What is simulated is the network (messages are handed over) and time (it jumps to the next event).

Devices check in when a round wants them: those that are available at that time, in random order, as many as are
wanted. Where they are too few, time passes and others come. Events reach the coordinator in the order of virtual time,
whatever order workers finish in; an update that comes after the round has closed is known to be late before it is
computed, and is not computed.
"""

from collections import deque
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.plans.plan import Plan
from covey.plans.signing import sign_plan
from covey.server.coordinator import Coordinator, CoordinatorState, RoundSettings
from covey.server.engine import Engine
from covey.server.messages import (
    BytesServed,
    CloseShard,
    Counted,
    DeviceArrived,
    DeviceLeft,
    DiscardShard,
    Envelope,
    Lost,
    OpenShard,
    Reply,
    ShardClosed,
    coordinator_address,
    selector_address,
)
from covey.server.population import begin_population
from covey.server.selector import Selector, SelectorSettings
from covey.server.settings import TaskSettings
from covey.simulation.failures import DROPPED, Failures
from covey.simulation.fleet import Arrival, Fleet
from covey.simulation.messages import POPULATION, Blobs, Ended, RunSession
from covey.simulation.noise import RoundNoise
from covey.simulation.pool import WorkerPool
from covey.simulation.rest import Rest
from covey.simulation.snapshot import Snapshot, resume_population
from covey.storage.memory import MemoryStorage
from covey.types.clock import VirtualClock
from covey.types.rng import derive_seed
from covey.types.segments import SegmentSum
from covey.wire.messages import Assignment, RoundSummary

__all__ = ["Federation", "merged", "owner_key"]

_TASK = "train"
_POLL_S = 60.0
"""Where too few devices are available, others may come after so long."""


def owner_key(seed: int) -> Ed25519PrivateKey:
    """Return the key that signs a simulation's plan. Seeded, so that runs repeat; it protects nothing."""
    return Ed25519PrivateKey.from_private_bytes(derive_seed(seed, "owner"))


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the raw public key."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class Federation:
    """Drives rounds. Law: equal arguments give equal rounds and checkpoints, bit for bit, at any number of workers.

    So does a run that was stopped after any round and begun again from its :meth:`snapshot`.
    """

    def __init__(
        self,
        plan: Plan,
        plan_bytes: bytes,
        checkpoint: bytes,
        fleet: Fleet,
        rounds: RoundSettings,
        pool: WorkerPool,
        *,
        seed: int,
        on_session: Callable[[int, int], None],
        resumed: Snapshot | None = None,
        lenient: bool = False,
    ) -> None:
        """Begin the first round, or the one after a snapshot's.

        Args:
            plan: what devices execute.
            plan_bytes: its archive.
            checkpoint: the first parameters, packed.
            fleet: the devices.
            rounds: how rounds go.
            pool: the workers, set up with the same plan and seed.
            seed: of the run.
            on_session: gets how many sessions of a round are done, and how many there are.
            resumed: where a former run stood.
            lenient: try on where devices fail, as long as any round can be committed.
        """
        before = resumed
        self.storage = _storage(plan, plan_bytes, checkpoint, rounds, seed, before)
        # Which name the next attempt gets: its round, and how many attempts at it were named before.
        self._names = (before.round, before.names - 2) if before else (0, -1)
        self._tokens: tuple[int, int, int] = (-1, -1, 0)
        self._seed = seed
        self._fleet, self._rounds, self._pool = fleet, rounds, pool
        self._manifest = plan.manifest
        self._on_session = on_session
        self._clock = VirtualClock(before.now_s if before else 0.0)
        self._attempts = before.attempts if before else 0
        self._seen = 0
        self._noise = RoundNoise(seed)
        self._coordinator = Coordinator(
            POPULATION, self.storage, new_token=self._token, noise=self._noise, simulated=True
        )
        self._rest = before.rest.copy() if before else Rest.of(plan.manifest.privacy.noise)
        fleet.hold(self._rest.absent())
        self._engine = _engine(rounds, self._coordinator)
        self._waiting: list[int] = []
        self._polls = 0
        self._assigned: list[tuple[int, Assignment]] = []
        self._shard: OpenShard | None = None
        self._away: list[int] = []
        self._failures = Failures(rounds, lenient=lenient)
        self._known: frozenset[str] = frozenset()
        self._route(self._coordinator.start(self._clock.now_s()))

    @property
    def checkpoint(self) -> bytes:
        """The newest committed parameters, packed."""
        return self.storage.blob(self._coordinator.checkpoint.sha256)

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self._clock.now_s()

    def snapshot(self) -> Snapshot:
        """Return what a later run needs to go on from here: to be called between two rounds."""
        record = self.storage.load(POPULATION)
        assert record is not None
        return Snapshot(
            round=self._coordinator.round,
            names=self._names[1] + 1,
            attempts=self._attempts,
            now_s=self._clock.now_s(),
            checkpoint=self.checkpoint,
            extra=self.storage.blob(record.extra) if record.extra else b"",
            fleet=self._fleet.state(),
            charges=self.storage.privacy_charges(POPULATION),
            rest=self._rest.copy(),
        )

    def next_round(self) -> RoundSummary:
        """Run until a round is committed, and return it. ``seconds`` in it are virtual.

        Raises:
            TrainingError: devices failed, so that too few were left, round after round was abandoned, or the server
                paused the training.
            BudgetExhaustedError: the population may open no further sum.
        """
        abandoned = 0
        while True:
            # Rows of before as well: with a commit the server may have found that no further round can begin.
            for summary in self.storage.rounds(POPULATION, after=self._seen):
                self._seen += 1
                if summary.status == "committed":
                    return summary
                abandoned += 1
                self._failures.check(summary, abandoned)
            if self._coordinator.state is CoordinatorState.PAUSED:
                raise self._failures.paused(self.storage.rounds(POPULATION)[-1])
            self._noise.begin(self._coordinator.round, self._attempts)
            if self._assigned:
                self._run_cohort()
            else:
                self._gather()

    def _gather(self) -> None:
        """Let devices check in that a round waits for; else let time pass."""
        until_s = self._engine.next_deadline_s() or 0.0
        if self._coordinator.state is CoordinatorState.SELECTING:
            self._leave()
            self._polls += 1
            labels = (self._coordinator.round, self._attempts, self._polls)
            self._waiting = self._fleet.draw(self._rounds.num_selected, self._clock.now_s(), *labels)
            for device in self._waiting:
                self._route([Envelope(selector_address(POPULATION), DeviceArrived(str(device)))])
            if self._assigned:
                return
            until_s = min(self._engine.next_deadline_s() or until_s, self._clock.now_s() + _POLL_S)
        self._advance_to(until_s)

    def _leave(self) -> None:
        """Send home who waited in vain: by the next poll it may not be available any more."""
        for device in self._waiting:
            self._route([Envelope(selector_address(POPULATION), DeviceLeft(str(device)))])
        self._fleet.release(self._waiting)
        self._waiting = []

    def _run_cohort(self) -> None:
        """Run the sessions that can still be counted, and tell the coordinator in the order of virtual time."""
        shard, assigned = self._shard, self._assigned
        assert shard is not None, "sessions are assigned after their shard is opened"
        self._attempts += 1
        self._polls = 0
        self._assigned, self._waiting = [], []
        self._failures.begin()
        self._away = sorted(device for device, _ in assigned)
        offer = assigned[0][1]
        refs = [offer.checkpoint, *([offer.shared] if offer.shared else [])]
        names = frozenset(r.sha256 for r in refs)
        self._pool.everywhere(Blobs({n: self.storage.blob(n) for n in names - self._known}, names))
        self._known = names
        sessions, began_s = dict(assigned), self._clock.now_s()
        arrivals = [self._fleet.arrival(d, offer.phase, self._attempts, began_s) for d in sessions]
        due_s = began_s + self._rounds.report_timeout_s
        waiting = sorted((a for a in arrivals if a.at_s < due_s), key=lambda a: (a.at_s, a.device))
        counted: set[int] = set()
        while waiting and self._shard is shard:
            wave = _first(waiting, self._rounds.goal - len(counted))
            waiting = waiting[len(wave) :]
            ended = self._train(wave, sessions, len(assigned) - len(waiting) - len(wave))
            for arrival in wave:
                self._advance_to(arrival.at_s)
                if self._shard is shard:
                    self._tell(shard, arrival.device, ended[arrival.device])
                    if not ended[arrival.device].code:
                        counted.add(arrival.device)
        closed_s = due_s if self._shard is shard else self._clock.now_s()
        for a in arrivals:
            self._fleet.spent(a.times, counted=a.device in counted, until_s=closed_s - began_s)

    def _train(self, wave: list[Arrival], sessions: dict[int, Assignment], done: int) -> dict[int, Ended]:
        """Run sessions on the workers, the longest first so that none is left for the end."""
        sizes, total = self._fleet.num_examples, len(sessions)
        ended = {a.device: Ended(DROPPED) for a in wave if a.dropped}
        todo = sorted((a.device for a in wave if not a.dropped), key=lambda d: (-sizes[d], d))
        self._on_session(done, total)
        messages = [RunSession(device, sessions[device]) for device in todo]
        for finished, (index, answer) in enumerate(self._pool.scattered(messages), start=1):
            ended[todo[index]] = answer
            self._on_session(done + finished, total)
        return ended

    def _tell(self, shard: OpenShard, device: int, ended: Ended) -> None:
        to, attempt = coordinator_address(POPULATION), shard.attempt
        self._failures.note(ended)
        self._route([Envelope(to, BytesServed(self._fleet.told(device, shard.phase, ended)))])
        self._route([Envelope(to, Lost(attempt, ended.code) if ended.code else Counted(attempt, ended.bytes_up))])

    def _advance_to(self, at_s: float) -> None:
        """Turn the clock to ``at_s``; deadlines on the way are kept."""
        while (deadline_s := self._engine.next_deadline_s()) is not None and deadline_s <= at_s:
            self._clock.advance_to(deadline_s)
            self._route(self._engine.tick(self._clock.now_s()))
        self._clock.advance_to(at_s)

    def _route(self, envelopes: list[Envelope]) -> None:
        """Deliver, and answer for whoever lives outside the engine: the devices and the aggregators."""
        pending = deque(self._engine.deliver(envelopes, self._clock.now_s()))
        while pending:
            envelope = pending.popleft()
            match envelope.message:
                case OpenShard() as shard:
                    # Every worker opens the whole cohort: which of them runs a session is settled by who is free.
                    self._shard = shard
                    self._pool.everywhere(shard)
                case CloseShard(attempt=attempt):
                    total = merged(self._pool.everywhere(envelope.message))
                    self._shard = None
                    self._come_back()
                    closed = Envelope(coordinator_address(POPULATION), ShardClosed(attempt, total))
                    pending.extend(self._engine.deliver([closed], self._clock.now_s()))
                case DiscardShard():
                    self._shard = None
                    self._pool.everywhere(envelope.message)
                    self._come_back()
                case Reply(message=Assignment() as assignment):
                    self._assigned.append((int(envelope.to.rpartition("/")[2]), assignment))

    def _come_back(self) -> None:
        self._fleet.release(self._rest.awake(self._away, self._coordinator.round))
        self._away = []

    def _token(self) -> str:
        """Return a name that follows from the round and the attempt, not from how often names were asked for."""
        if self._coordinator.state is not CoordinatorState.SELECTING:
            # An attempt's: of the round that begins, or of the one after that which reports now.
            reporting = self._coordinator.state is CoordinatorState.REPORTING
            following = self._coordinator.round + int(reporting)
            self._names = (following, self._names[1] + 1 if self._names[0] == following else 0)
            return derive_seed(self._seed, "attempt", *self._names).hex()[:32]
        number, attempt, count = self._tokens
        same = (number, attempt) == (self._coordinator.round, self._attempts)
        self._tokens = (self._coordinator.round, self._attempts, count + 1 if same else 0)
        return derive_seed(self._seed, "token", *self._tokens).hex()[:32]


def _engine(rounds: RoundSettings, coordinator: Coordinator) -> Engine:
    # Devices wait as long as it takes: polling again would change nothing but the work.
    waiting = SelectorSettings(poll_s=float("inf"), max_waiting=rounds.num_selected + 1)
    selector = Selector(POPULATION, waiting, _AsTheyCome())
    return Engine({selector_address(POPULATION): selector, coordinator_address(POPULATION): coordinator})


def _storage(
    plan: Plan, plan_bytes: bytes, checkpoint: bytes, rounds: RoundSettings, seed: int, before: Snapshot | None
) -> MemoryStorage:
    """Return a storage with the population at its beginning, or where a former run left it."""
    storage, settings = MemoryStorage(), TaskSettings(rounds)
    signature = sign_plan(owner_key(seed), POPULATION, plan.hash).hex()
    if before is None:
        begin_population(storage, POPULATION, plan_bytes, signature, checkpoint, settings, _TASK)
    else:
        resume_population(storage, POPULATION, plan_bytes, signature, before, settings, _TASK)
    return storage


class _AsTheyCome:
    """The selector's chance: the devices that wait were drawn at random already."""

    def randrange(self, stop: int, /) -> int:
        """See :class:`covey.server.selector.Chance`; never needed, as nobody is turned away."""
        return stop - 1

    def sample(self, population: Sequence[str], k: int) -> list[str]:
        """See :class:`covey.server.selector.Chance`."""
        return list(population[:k])


def merged(shards: list[SegmentSum]) -> SegmentSum:
    """Return the sum of all workers' shards."""
    first, *others = shards
    for other in others:
        first.merge(other)
    return first


def _first(waiting: list[Arrival], wanted: int) -> list[Arrival]:
    """Return the arrivals up to the ``wanted``-th that does not drop out: the goal, if none of them fails."""
    for i, arrival in enumerate(waiting):
        wanted -= not arrival.dropped
        if wanted <= 0:
            return waiting[: i + 1]
    return waiting
