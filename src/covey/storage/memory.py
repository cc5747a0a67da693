"""Storage in memory: for simulations and tests. It keeps the newest checkpoints only, like the others."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from covey.plans.release import Release
from covey.storage.interface import Admit, PopulationRecord, PrivacyCharge, TaskRecord, Version
from covey.types.errors import NotFoundError, StorageError
from covey.types.tensors import sha256_hex
from covey.wire.messages import CandidateSummary, RoundSummary

__all__ = ["MemoryStorage"]


class MemoryStorage:
    """See :class:`covey.storage.interface.Storage`."""

    def __init__(self, *, keep_checkpoints: int = 2) -> None:
        """Begin empty; of each population's checkpoints the newest ``keep_checkpoints`` are kept."""
        self._blobs: dict[str, bytes] = {}
        self._populations: OrderedDict[str, PopulationRecord] = OrderedDict()
        self._rounds: dict[str, list[RoundSummary]] = {}
        self._kept: dict[str, deque[Version]] = {}
        self._tasks: dict[str, dict[str, TaskRecord]] = {}
        self._charges: dict[str, list[PrivacyCharge]] = {}
        self._held: dict[str, set[str]] = {}
        self._keep = max(1, keep_checkpoints)
        self.release_store = MemoryReleases(self._keep, self.forget, self._known)

    def put_blob(self, data: bytes) -> str:
        """See :class:`Storage`."""
        name = sha256_hex(data)
        self._blobs[name] = bytes(data)
        return name

    def blob(self, sha256: str) -> bytes:
        """See :class:`Storage`."""
        if sha256 not in self._blobs:
            raise NotFoundError("blob", expected="a stored blob", got="an unknown name")
        return self._blobs[sha256]

    def load(self, population: str) -> PopulationRecord | None:
        """See :class:`Storage`."""
        return self._populations.get(population)

    def create(self, record: PopulationRecord) -> None:
        """See :class:`Storage`."""
        if record.population in self._populations:
            raise StorageError("population", expected="a new name", got="one that exists")
        self._populations[record.population] = record
        self._rounds[record.population] = []
        self._kept[record.population] = deque()
        self._tasks[record.population] = {}

    def populations(self) -> tuple[str, ...]:
        """See :class:`Storage`."""
        return tuple(self._populations)

    def add_task(self, record: TaskRecord) -> None:
        """See :class:`Storage`."""
        self._known(record.population)
        if record.name in self._tasks[record.population]:
            raise StorageError("task", expected="a new name", got="one that exists")
        self._tasks[record.population][record.name] = record

    def tasks(self, population: str) -> tuple[TaskRecord, ...]:
        """See :class:`Storage`."""
        return tuple(self._tasks.get(population, {}).values())

    def change_task(self, population: str, name: str, state: str, settings: bytes) -> None:
        """See :class:`Storage`."""
        self._put_task(replace(self._task(population, name), state=state, settings=settings))

    def commit_round(self, population: str, summary: RoundSummary, checkpoint: bytes, extra: bytes) -> None:
        """See :class:`Storage`."""
        self._known(population)
        self._task(population, summary.task)
        name, extra_name = self.put_blob(checkpoint), self.put_blob(extra) if extra else ""
        self._move(population, summary, name, extra_name)
        self._count(population, summary)

    def commit_evaluation(self, population: str, summary: RoundSummary) -> None:
        """See :class:`Storage`."""
        self._known(population)
        self._count(population, summary)
        self._rounds[population].append(summary)

    def roll_back(self, population: str, summary: RoundSummary, version: Version) -> None:
        """See :class:`Storage`."""
        if version not in self.versions(population):
            raise StorageError("version", expected="one that is kept", got="another")
        self._move(population, summary, version.checkpoint, version.extra)

    def versions(self, population: str) -> tuple[Version, ...]:
        """See :class:`Storage`."""
        return tuple(self._kept.get(population, ()))

    def add_summary(self, population: str, summary: RoundSummary) -> None:
        """See :class:`Storage`."""
        self._known(population)
        self._rounds[population].append(summary)

    def rounds(self, population: str, after: int = 0) -> tuple[RoundSummary, ...]:
        """See :class:`Storage`."""
        return tuple(self._rounds.get(population, ())[after:])

    def charge_privacy(self, population: str, charges: Sequence[PrivacyCharge], admit: Admit) -> None:
        """See :class:`Storage`."""
        self._known(population)
        admit(self.privacy_spent(population))
        self._charges.setdefault(population, []).extend(charges)

    def privacy_spent(self, population: str) -> Mapping[bytes, int]:
        """See :class:`Storage`."""
        spent: Counter[bytes] = Counter()
        for charge in self._charges.get(population, ()):
            spent[charge.loss] += charge.times
        return spent

    def privacy_charges(self, population: str) -> tuple[PrivacyCharge, ...]:
        """See :class:`Storage`."""
        return tuple(self._charges.get(population, ()))

    def close(self) -> None:
        """See :class:`Storage`."""

    def forget(self, names: set[str]) -> None:
        """See :class:`Storage`."""
        held = {name for held in self._held.values() for name in held}
        for blob in names - self._needed() - self.release_store.needed() - held:
            self._blobs.pop(blob, None)

    def hold(self, population: str, names: set[str]) -> None:
        """See :class:`Storage`."""
        before = self._held.pop(population, set())
        self._held[population] = set(names)
        self.forget(before - names)

    def _move(self, population: str, summary: RoundSummary, checkpoint: str, extra: str) -> None:
        number = self._populations[population].round + 1
        self._populations[population] = PopulationRecord(population, number, checkpoint, extra)
        self._rounds[population].append(summary)
        kept = self._kept[population]
        kept.append(Version(summary.round, checkpoint, extra))
        while len(kept) > self._keep:
            old = kept.popleft()
            self.forget({old.checkpoint, old.extra})

    def _needed(self) -> set[str]:
        """Return the blobs that somebody may still ask for: another population may need the same bytes."""
        states = {name for r in self._populations.values() for name in (r.checkpoint, r.extra)}
        tasks = {name for t in self._tasks.values() for r in t.values() for name in (r.plan, r.checkpoint)}
        return states | tasks | {name for kept in self._kept.values() for v in kept for name in (v.checkpoint, v.extra)}

    def _count(self, population: str, summary: RoundSummary) -> None:
        task, version = self._task(population, summary.task), self._known(population).round
        self._put_task(replace(task, rounds=task.rounds + 1, version=version))

    def _task(self, population: str, name: str) -> TaskRecord:
        if name not in self._tasks.get(population, {}):
            raise StorageError("task", expected="one that was created", got="an unknown name")
        return self._tasks[population][name]

    def _put_task(self, record: TaskRecord) -> None:
        self._tasks[record.population][record.name] = record

    def _known(self, population: str) -> PopulationRecord:
        if population not in self._populations:
            raise StorageError("population", expected="one that was created", got="an unknown name")
        return self._populations[population]


class MemoryReleases:
    """See :class:`covey.storage.interface.ReleaseStore`."""

    def __init__(self, keep: int, forget: Callable[[set[str]], None], known: Callable[[str], PopulationRecord]) -> None:
        """Begin empty; checkpoints of the newest ``keep`` releases stay, others are told to ``forget``."""
        self._keep = keep
        self._forget = forget
        self._known = known
        self._candidates: dict[str, list[CandidateSummary]] = {}
        self._releases: dict[str, list[Release]] = {}

    def propose(self, population: str, candidate: CandidateSummary) -> None:
        """See :class:`ReleaseStore`."""
        self._known(population)
        rows = self._candidates.setdefault(population, [])
        if any((c.task, c.round) == (candidate.task, candidate.round) for c in rows):
            raise StorageError("candidate", expected="a round without one", got="a second for one round")
        rows.append(candidate)

    def settle(self, population: str, candidate: CandidateSummary, release: Release | None) -> None:
        """See :class:`ReleaseStore`."""
        rows = self._candidates.get(population, [])
        keys = [(c.task, c.round, c.status) for c in rows]
        if (key := (candidate.task, candidate.round, "pending")) not in keys:
            raise StorageError("candidate", expected="a pending one of that round", got="none")
        if release is not None:
            self.publish(release)
        rows[keys.index(key)] = candidate
        self._forget({candidate.checkpoint})

    def publish(self, release: Release) -> None:
        """See :class:`ReleaseStore`."""
        self._known(release.population)
        rows = self._releases.setdefault(release.population, [])
        if release.version != len(rows) + 1:
            raise StorageError("release", expected=f"version {len(rows) + 1}", got=str(release.version))
        rows.append(release)
        self._forget({r.checkpoint for r in rows[: -self._keep][-1:]})

    def candidates(self, population: str) -> tuple[CandidateSummary, ...]:
        """See :class:`ReleaseStore`."""
        return tuple(self._candidates.get(population, ()))

    def releases(self, population: str) -> tuple[Release, ...]:
        """See :class:`ReleaseStore`."""
        return tuple(self._releases.get(population, ()))

    def needed(self) -> set[str]:
        """Return the checkpoints that must stay."""
        pending = {c.checkpoint for rows in self._candidates.values() for c in rows if c.status == "pending"}
        return pending | {r.checkpoint for rows in self._releases.values() for r in rows[-self._keep :]}
