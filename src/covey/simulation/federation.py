"""One simulated federation: the server's own roles on a virtual clock, with devices in worker processes.

Nothing here imitates the server: the selector draws the cohort, the coordinator keeps deadlines and commits, the
aggregators fold. What is simulated is the network (messages are handed over) and time (it jumps to the next event).

Events reach the coordinator in the order of virtual time, whatever order workers finish in; an update that comes after
the round has closed is known to be late before it is computed, and is not computed.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.device.batches import num_steps
from covey.plans.plan import Plan
from covey.plans.signing import sign_plan
from covey.privacy.randomness import AesCtr
from covey.server.coordinator import Coordinator, RoundSettings
from covey.server.engine import Engine
from covey.server.messages import (
    BytesServed,
    CloseShard,
    Counted,
    DeviceArrived,
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
from covey.simulation.messages import POPULATION, Blobs, Ended, RunSession
from covey.simulation.pool import WorkerPool
from covey.simulation.population import DevicePopulation
from covey.simulation.rest import Rest
from covey.storage.memory import MemoryStorage
from covey.types.clock import VirtualClock
from covey.types.errors import BudgetExhaustedError, TrainingError
from covey.types.rng import derive_seed
from covey.types.segments import SegmentSum
from covey.wire.messages import Assignment, RoundSummary

__all__ = ["Federation", "owner_key"]

_DROPPED = "condition_lapsed"
_MOST_FAILURES = 10
"""So many abandoned rounds in a row end a simulation: nobody is there to mend anything."""


def owner_key(seed: int) -> Ed25519PrivateKey:
    """Return the key that signs a simulation's plan. Seeded, so that runs repeat; it protects nothing."""
    return Ed25519PrivateKey.from_private_bytes(derive_seed(seed, "owner"))


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the raw public key."""
    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


@dataclass(slots=True)
class _Arrival:
    """One device of the cohort: when its session ends, and whether it gives up."""

    at_s: float
    device: int
    dropped: bool
    assignment: Assignment


class Federation:
    """Drives rounds. Law: equal arguments give equal rounds and checkpoints, bit for bit, at any number of workers."""

    def __init__(
        self,
        plan: Plan,
        plan_bytes: bytes,
        checkpoint: bytes,
        num_examples: list[int],
        rounds: RoundSettings,
        pool: WorkerPool,
        *,
        seed: int,
        population: DevicePopulation,
        on_session: Callable[[int, int], None],
    ) -> None:
        """Let every device check in and begin the first round.

        Args:
            plan: what devices execute.
            plan_bytes: its archive.
            checkpoint: the first parameters, packed.
            num_examples: of every device.
            rounds: how rounds go.
            pool: the workers, set up with the same plan and seed.
            seed: of the run.
            population: how devices behave.
            on_session: gets how many sessions of a round are done, and how many there are.
        """
        self.storage = MemoryStorage()
        signature = sign_plan(owner_key(seed), POPULATION, plan.hash).hex()
        begin_population(self.storage, POPULATION, plan_bytes, signature, checkpoint, TaskSettings(rounds), "train")
        self._tokens = 0
        self._seed = seed
        self._manifest = plan.manifest
        self._num_examples = num_examples
        self._rounds = rounds
        self._pool = pool
        self._population = population
        self._on_session = on_session
        self._clock = VirtualClock()
        noise = AesCtr(derive_seed(seed, "server noise"), private=False)
        self._coordinator = Coordinator(POPULATION, self.storage, new_token=self._token, noise=noise, simulated=True)
        self._rest = Rest.of(plan.manifest.privacy.noise)
        # Devices wait as long as it takes: polling again would change nothing but the work.
        waiting = SelectorSettings(poll_s=float("inf"), max_waiting=len(num_examples) + 1)
        chance = random.Random(int.from_bytes(derive_seed(seed, "selection")))
        self._engine = Engine(
            {
                selector_address(POPULATION): Selector(POPULATION, waiting, chance),
                coordinator_address(POPULATION): self._coordinator,
            }
        )
        self._assigned: list[tuple[int, Assignment]] = []
        self._shard: OpenShard | None = None
        self._away: list[int] = []
        self._has_plan: set[int] = set()
        self._plan_bytes = len(plan_bytes)
        self._attempts = 0
        self._failures: list[Ended] = []
        self.num_steps = 0
        self._arrive(range(len(num_examples)))
        self._route(self._coordinator.start(0.0))

    @property
    def checkpoint(self) -> bytes:
        """The newest committed parameters, packed."""
        return self.storage.blob(self._coordinator.checkpoint.sha256)

    def next_round(self) -> RoundSummary:
        """Run until a round is committed, and return it. ``seconds`` in it are virtual.

        Raises:
            TrainingError: devices failed, so that too few were left, or round after round was abandoned.
        """
        abandoned = 0
        while True:
            seen = len(self.storage.rounds(POPULATION))
            if self._assigned:
                self._run_cohort()
            else:
                self._advance_to(self._engine.next_deadline_s() or 0.0)
            for summary in self.storage.rounds(POPULATION, after=seen):
                if summary.status == "committed":
                    return summary
                abandoned += 1
                self._check_abandoned(summary, abandoned)

    def _run_cohort(self) -> None:
        """Run the sessions that can still be counted, and tell the coordinator in the order of virtual time."""
        shard, assigned = self._shard, self._assigned
        assert shard is not None, "sessions are assigned after their shard is opened"
        self._attempts += 1
        self._assigned, self._failures = [], []
        self._away = sorted(device for device, _ in assigned)
        offer = assigned[0][1]
        refs = [offer.checkpoint, *([offer.shared] if offer.shared else [])]
        self._pool.everywhere(Blobs({r.sha256: self.storage.blob(r.sha256) for r in refs}))
        # All are told the same, so that one offer speaks for the blobs of all.
        waiting = sorted((self._arrival(*a) for a in assigned), key=lambda a: (a.at_s, a.device))
        counted = 0
        while waiting and self._shard is shard:
            wave = _first(waiting, self._rounds.goal - counted)
            waiting = waiting[len(wave) :]
            ended = self._train(wave, len(assigned) - len(waiting) - len(wave), len(assigned))
            for arrival in wave:
                counted += not ended[arrival.device].code
                self._advance_to(arrival.at_s)
                if self._shard is shard:
                    self._tell(shard.attempt, arrival.device, ended[arrival.device])

    def _train(self, wave: list[_Arrival], done: int, total: int) -> dict[int, Ended]:
        """Run sessions on the workers, the longest first so that none is left for the end."""
        ended = {a.device: Ended(_DROPPED) for a in wave if a.dropped}
        todo = sorted((a for a in wave if not a.dropped), key=lambda a: (-self._num_examples[a.device], a.device))
        self._on_session(done, total)
        messages = [RunSession(a.device, a.assignment) for a in todo]
        for finished, (index, answer) in enumerate(self._pool.scattered(messages), start=1):
            ended[todo[index].device] = answer
            self._on_session(done + finished, total)
        return ended

    def _tell(self, attempt: str, device: int, ended: Ended) -> None:
        to = coordinator_address(POPULATION)
        bytes_down = ended.bytes_down
        if bytes_down and device not in self._has_plan:
            self._has_plan.add(device)  # a plan is downloaded once and kept
            bytes_down += self._plan_bytes
        if ended.code:
            self._failures.append(ended)
        self.num_steps += ended.num_steps
        self._route([Envelope(to, BytesServed(bytes_down))])
        self._route([Envelope(to, Lost(attempt, ended.code) if ended.code else Counted(attempt, ended.bytes_up))])

    def _arrival(self, device: int, assignment: Assignment) -> _Arrival:
        steps = num_steps(self._num_examples[device], self._manifest.phases[assignment.phase])
        takes_s = self._population.session_s(self._seed, device, steps)
        dropped = self._population.drops_out(self._seed, device, self._attempts)
        return _Arrival(self._clock.now_s() + takes_s, device, dropped, assignment)

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
                    total = self._collect(envelope.message)
                    self._arrive(self._away)
                    closed = Envelope(coordinator_address(POPULATION), ShardClosed(attempt, total))
                    pending.extend(self._engine.deliver([closed], self._clock.now_s()))
                case DiscardShard():
                    self._shard = None
                    self._pool.everywhere(envelope.message)
                    self._arrive(self._away)
                case Reply(message=Assignment() as assignment):
                    self._assigned.append((int(envelope.to.rpartition("/")[2]), assignment))

    def _collect(self, message: CloseShard) -> SegmentSum:
        first, *others = self._pool.everywhere(message)
        assert isinstance(first, SegmentSum)
        for other in others:
            first.merge(other)
        self._shard = None
        return first

    def _arrive(self, devices: Iterable[int]) -> None:
        """Let devices check in: before the next selection, so that it draws from all that may take part."""
        for device in self._rest.awake(devices, self._coordinator.round):
            self._route([Envelope(selector_address(POPULATION), DeviceArrived(str(device)))])

    def _check_abandoned(self, summary: RoundSummary, abandoned: int) -> None:
        if summary.reason == BudgetExhaustedError.code:
            raise BudgetExhaustedError(
                f"round {summary.round}",
                expected="a budget that allows one more sum",
                got="a population that has spent it",
                hint="abandoned rounds are charged too once their sum was opened: a larger budget, or more noise",
            )
        failures = [f for f in self._failures if f.code != _DROPPED]
        where = f"round {summary.round}"
        if failures:
            code, count = Counter(f.code for f in failures).most_common(1)[0]
            cause = next(f.message for f in failures if f.code == code)
            raise TrainingError(
                where,
                expected=f"reports from at least {self._rounds.at_least} devices",
                got=f"{summary.reported}; {count} of {summary.selected} failed: {cause}",
                hint=_HINTS.get(code, "see docs/errors.md for " + code),
            )
        if summary.reason not in ("too_many_lost", "too_few_reports"):
            raise TrainingError(
                where,
                expected="a sum that can be applied",
                got=summary.reason,
                hint="training may have diverged: a lower learning rate usually cures it",
            )
        if abandoned >= _MOST_FAILURES:
            raise TrainingError(
                where,
                expected="enough devices that finish",
                got=f"{abandoned} abandoned rounds in a row ({summary.reason})",
                hint="lower the dropout, or select more devices than the round needs",
            )

    def _token(self) -> str:
        self._tokens += 1
        return derive_seed(self._seed, "token", self._tokens).hex()[:32]


_HINTS = {
    "training_not_finite": "training diverged: a lower learning rate (--lr) usually cures it",
    "update_range": "training diverged: a lower learning rate (--lr) usually cures it",
    "too_few_examples": "give every device at least one example: fewer devices, or another partition",
}


def _first(waiting: list[_Arrival], wanted: int) -> list[_Arrival]:
    """Return the arrivals up to the ``wanted``-th that does not drop out: the goal, if none of them fails."""
    for i, arrival in enumerate(waiting):
        wanted -= not arrival.dropped
        if wanted <= 0:
            return waiting[: i + 1]
    return waiting
