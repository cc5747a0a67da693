"""A simulated federation without rounds: buffered asynchronous aggregation, 2106.06639, Algorithm 1.

A number of devices trains at any time; as one ends, another begins, from the model of that moment. The updates go into
a buffer, and each time K are in it the server moves the model. The device's session, the aggregator's fold and the
algorithm's server half are those of the synchronous simulation; only who is admitted when is this module's.

Which K sessions fill a buffer follows from their times alone, so that their training is put off until the buffer is
full and then done by all workers at once. Every session trains from the model that it was admitted with.
"""

import heapq
from collections.abc import Callable

import msgspec

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.fedbuff import asynchrony
from covey.algorithms.registry import server_half
from covey.plans.manifest import Manifest
from covey.plans.plan import Plan
from covey.plans.signing import sign_plan
from covey.server.buffer import STALENESS
from covey.server.download import encoded_checkpoint
from covey.server.messages import CloseShard, OpenShard, public_seed
from covey.server.opening import opened_reals
from covey.server.settings import RoundSettings, check_settings, hyper_in
from covey.simulation.failures import Failures
from covey.simulation.federation import merged, owner_key
from covey.simulation.fleet import Fleet
from covey.simulation.messages import POPULATION, Blobs, Ended, RunSession
from covey.simulation.pool import WorkerPool
from covey.simulation.snapshot import Flight, Snapshot
from covey.storage.interface import PopulationRecord, decode_named, encode_named
from covey.storage.memory import MemoryStorage
from covey.types.errors import CoveyError, UsageError
from covey.types.rng import derive_seed
from covey.types.tensors import pack_tensors, sha256_hex, unpack_tensors
from covey.wire.messages import Assignment, BlobRef, RoundSummary

__all__ = ["AsynchronousFederation"]

_POLL_S = 60.0
_MOST_LOST = 100
"""So many times the buffer's size may be lost before a run gives up."""


class AsynchronousFederation:
    """Drives moves of the model. The laws are those of :class:`covey.simulation.federation.Federation`.

    A "round" of its summaries is one move: K updates that were counted.
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
        """Admit the first devices, or go on from a snapshot.

        Args:
            plan: what devices execute; of an asynchronous algorithm with one phase, without noise.
            plan_bytes: its archive.
            checkpoint: the first parameters, packed.
            fleet: the devices.
            rounds: ``goal`` is K; of the rest only ``hyper`` matters.
            pool: the workers, set up with the same plan and seed.
            seed: of the run.
            on_session: gets how many sessions of a buffer are done, and how many there are.
            resumed: where a former run stood.
            lenient: try on where devices fail.

        Raises:
            UsageError: a plan with differential privacy, or settings that cannot work with it.
        """
        manifest = plan.manifest
        _check(manifest, rounds)
        self.storage = MemoryStorage()
        self._plan_ref = _ref(plan_bytes)
        self._signature = sign_plan(owner_key(seed), POPULATION, plan.hash).hex()
        self._manifest, self._fleet, self._rounds, self._pool = manifest, fleet, rounds, pool
        self._seed, self._on_session = seed, on_session
        self._algorithm = server_half(manifest.algorithm.name, manifest.algorithm.settings)
        apart = asynchrony(manifest.algorithm.settings, rounds.goal)
        self._concurrency, self._max_staleness = min(apart.concurrency, len(fleet)), apart.max_staleness
        self._failures = Failures(rounds, lenient=lenient)
        self._version = resumed.round if resumed else 0
        self._serial = resumed.attempts if resumed else 0
        self._now_s = resumed.now_s if resumed else 0.0
        packed = resumed.checkpoint if resumed else checkpoint
        self._versions = {**(resumed.versions if resumed else {}), self._version: packed}
        self._offers: dict[int, bytes] = {}
        self._flights = list(resumed.flights) if resumed else []
        state = self._algorithm.init(unpack_tensors(manifest.params, packed))
        self._state = ServerState(state.params, decode_named(resumed.extra) if resumed else state.extra)
        self.storage.create(PopulationRecord(POPULATION, self._version, self.storage.put_blob(packed)))
        fleet.hold(f.device for f in self._flights)
        self._served: frozenset[str] = frozenset()
        self._admit()

    @property
    def checkpoint(self) -> bytes:
        """The newest parameters, packed."""
        return self._versions[self._version]

    @property
    def now_s(self) -> float:
        """The virtual time."""
        return self._now_s

    def snapshot(self) -> Snapshot:
        """Return what a later run needs to go on from here: to be called between two moves."""
        return Snapshot(
            round=self._version,
            attempts=self._serial,
            now_s=self._now_s,
            checkpoint=self.checkpoint,
            extra=encode_named(self._state.extra),
            fleet=self._fleet.state(),
            flights=tuple(sorted(self._flights)),
            versions=self._versions,
        )

    def next_round(self) -> RoundSummary:
        """Run until the buffer is full and the model has moved, and return what that took.

        Raises:
            TrainingError: devices failed, or too many were lost.
        """
        started_s, attempt = self._now_s, self._attempt(self._version)
        self._failures.begin()
        counted, lost, bytes_up, bytes_down = 0, self._end_stale(), 0, 0
        opened, staleness, inside = False, 0, list[int]()
        while counted < self._rounds.goal:
            wave = self._landed(self._rounds.goal - counted)
            lost += sum(f.dropped for f in wave)
            training = [f for f in wave if not f.dropped]
            if not opened and training:
                self._pool.everywhere(OpenShard(attempt, 0, (), number=self._version + 1))
                opened = True
            for flight, ended in self._train(training, attempt):
                bytes_down += self._fleet.told(flight.device, 0, ended)
                self._fleet.spent(flight.times, counted=not ended.code)
                bytes_up += ended.bytes_up
                if ended.code:
                    self._fleet.release([flight.device])
                    lost += 1
                    continue
                counted += 1
                staleness += self._version - flight.version
                inside.append(flight.device)
            if lost > _MOST_LOST * self._rounds.goal or (counted == 0 and lost >= self._rounds.goal):
                self._failures.check(self._summary("abandoned", counted, lost, started_s, 0, 0, {}, ""), lost)
        try:
            means = self._apply(attempt)
        except CoveyError as error:
            summary = self._summary("abandoned", counted, lost, started_s, 0, 0, {}, "")
            self._failures.check(_because(summary, error.code), counted)
            raise
        means[STALENESS] = staleness / counted
        self._fleet.release(inside)  # a device is in a buffer once
        self._version += 1
        packed = pack_tensors(self._state.params, self._manifest.params)
        needed = {f.version for f in self._flights}
        self._versions = {k: v for k, v in self._versions.items() if k in needed} | {self._version: packed}
        self._admit()  # whoever ended last is followed by a device that trains from the new model
        return self._summary("committed", counted, lost, started_s, bytes_up, bytes_down, means, sha256_hex(packed))

    def _apply(self, attempt: str) -> dict[str, float]:
        """Move the model by the buffer, and return the means of its metrics."""
        total = merged(self._pool.everywhere(CloseShard(attempt)))
        reals = opened_reals(self._manifest, 0, total, public_seed(attempt))
        aggregate = Aggregate.opened(total, self._manifest.phases[0], self._manifest.metrics, reals)
        self._state = self._algorithm.phases[0].apply(self._state, aggregate)
        return aggregate.means()

    def _end_stale(self) -> int:
        """End the sessions that the last move made too stale, and return how many."""
        stale = [f for f in self._flights if self._version - f.version > self._max_staleness]
        self._flights = [f for f in self._flights if self._version - f.version <= self._max_staleness]
        self._fleet.release(f.device for f in stale)
        for flight in stale:  # what they did until now was for nothing
            began_s = flight.at_s - sum(flight.times)
            self._fleet.spent(flight.times, counted=False, until_s=self._now_s - began_s)
        return len(stale)

    def _landed(self, wanted: int) -> list[Flight]:
        """Return the next sessions to end, up to the ``wanted``-th that does not drop out; others take their places."""
        wave: list[Flight] = []
        while wanted > 0:
            self._admit()
            flight = heapq.heappop(self._flights)
            self._now_s = max(self._now_s, flight.at_s)
            if flight.dropped:
                self._fleet.release([flight.device])
                self._fleet.spent(flight.times, counted=False)
            wave.append(flight)
            wanted -= not flight.dropped
        return wave

    def _admit(self) -> None:
        """Let devices begin until as many train as may; where none is there, let time pass."""
        heapq.heapify(self._flights)
        while True:
            room = self._concurrency - len(self._flights)
            for device in self._fleet.draw(room, self._now_s, self._version, self._serial) if room else ():
                ends = self._fleet.arrival(device, 0, self._serial, self._now_s)
                flight = Flight(ends.at_s, self._serial, device, self._version, ends.dropped, ends.times)
                heapq.heappush(self._flights, flight)
                self._serial += 1
            if self._flights:
                return
            self._now_s += _POLL_S

    def _train(self, flights: list[Flight], attempt: str) -> list[tuple[Flight, Ended]]:
        """Run sessions on the workers, the longest first; return how they ended in the order of virtual time."""
        refs = {f.version: _ref(self._offer(f.version)) for f in (*flights, *self._flights)}
        blobs = {refs[f.version].sha256: self._offer(f.version) for f in flights}
        names = frozenset(r.sha256 for r in refs.values())
        self._pool.everywhere(Blobs({k: v for k, v in blobs.items() if k not in self._served}, names & self._served))
        self._served = (names & self._served) | frozenset(blobs)
        sizes = self._fleet.num_examples
        order = sorted(range(len(flights)), key=lambda i: (-sizes[flights[i].device], i))
        messages = [RunSession(flights[i].device, self._assignment(flights[i], refs), joins=attempt) for i in order]
        ended: dict[int, Ended] = {}
        for index, answer in self._pool.scattered(messages):
            ended[order[index]] = answer
            self._failures.note(answer)
            self._on_session(len(ended), len(flights))
        return [(flight, ended[i]) for i, flight in enumerate(flights)]

    def _offer(self, version: int) -> bytes:
        """Return what devices download of a version. Their deltas go to the exact model, whatever it is by then."""
        if not self._manifest.download:
            return self._versions[version]
        if version not in self._offers:
            self._offers = {k: v for k, v in self._offers.items() if k in self._versions}
            self._offers[version] = encoded_checkpoint(self._versions[version], self._manifest)
        return self._offers[version]

    def _assignment(self, flight: Flight, refs: dict[int, BlobRef]) -> Assignment:
        return Assignment(
            session=self._token(flight.serial),
            round=flight.version + 1,
            phase=0,
            plan=self._plan_ref,
            signature=self._signature,
            checkpoint=refs[flight.version],
            hyper=hyper_in(self._rounds, self._manifest, flight.version + 1),
            public_seed=public_seed(self._attempt(flight.version)),
            report_within_s=self._rounds.report_timeout_s,
        )

    def _attempt(self, version: int) -> str:
        return derive_seed(self._seed, "buffer", version).hex()[:32]

    def _token(self, serial: int) -> str:
        return derive_seed(self._seed, "flight", serial).hex()[:32]

    def _summary(
        self, status: str, counted: int, lost: int, started_s: float, up: int, down: int,
        means: dict[str, float], checkpoint: str,
    ) -> RoundSummary:  # fmt: skip
        return RoundSummary(
            round=self._version + (status != "committed"),
            status=status,
            reason="" if status == "committed" else "too_many_lost",
            selected=counted + lost,
            reported=counted,
            lost=lost,
            seconds=self._now_s - started_s,
            bytes_down=down,
            bytes_up=up,
            metrics=means,
            checkpoint=checkpoint,
        )


def _check(manifest: Manifest, rounds: RoundSettings) -> None:
    check_settings(rounds, manifest)
    if manifest.privacy.noise is not None:
        raise UsageError(
            "--privacy", expected="an algorithm with rounds", got=manifest.algorithm.name,
            hint="no guarantee is known for who is in a buffer: fedavg, or no --privacy",
        )  # fmt: skip


def _ref(data: bytes) -> BlobRef:
    name = sha256_hex(data)
    return BlobRef(sha256=name, num_bytes=len(data), path=f"/v1/checkpoints/{name}")


def _because(summary: RoundSummary, reason: str) -> RoundSummary:
    return msgspec.structs.replace(summary, reason=reason)
