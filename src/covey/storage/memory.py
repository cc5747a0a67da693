"""Storage in memory: for simulations and tests. It keeps the newest checkpoints only, like the others."""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence

from covey.storage.interface import Admit, PopulationRecord, PrivacyCharge
from covey.types.errors import NotFoundError, StorageError
from covey.types.tensors import sha256_hex
from covey.wire.messages import RoundSummary

__all__ = ["MemoryStorage"]


class MemoryStorage:
    """See :class:`covey.storage.interface.Storage`."""

    def __init__(self, *, keep_checkpoints: int = 2) -> None:
        """Begin empty; of each population's checkpoints the newest ``keep_checkpoints`` are kept."""
        self._blobs: dict[str, bytes] = {}
        self._populations: OrderedDict[str, PopulationRecord] = OrderedDict()
        self._rounds: dict[str, list[RoundSummary]] = {}
        self._kept: dict[str, deque[tuple[str, str]]] = {}
        self._charges: dict[str, list[PrivacyCharge]] = {}
        self._keep = max(1, keep_checkpoints)

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
        self._kept[record.population] = deque([(record.checkpoint, record.extra)])

    def commit_round(self, population: str, summary: RoundSummary, checkpoint: bytes, extra: bytes) -> None:
        """See :class:`Storage`."""
        old = self._known(population)
        name, extra_name = self.put_blob(checkpoint), self.put_blob(extra) if extra else ""
        self._populations[population] = PopulationRecord(
            population, old.plan, old.signature, old.round + 1, name, extra_name
        )
        self._rounds[population].append(summary)
        kept = self._kept[population]
        kept.append((name, extra_name))
        while len(kept) > self._keep:
            # Another population may need the same bytes.
            needed = {name for r in self._populations.values() for name in (r.plan, r.checkpoint, r.extra)}
            for blob in set(kept.popleft()) - {n for pair in kept for n in pair} - needed:
                self._blobs.pop(blob, None)

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

    def _known(self, population: str) -> PopulationRecord:
        if population not in self._populations:
            raise StorageError("population", expected="one that was created", got="an unknown name")
        return self._populations[population]
