"""What a server keeps: tasks, plans, checkpoints, a row for each round, the privacy ledger. Nothing of any device.

Laws (``covey.testing.storage`` checks them on every implementation):

- a round is committed whole or not at all, and only after its checkpoint is safely stored;
- after a crash at any instant, :meth:`Storage.load` gives the last committed round;
- the newest checkpoint is never deleted, nor one that a task reads;
- versions of the model only move forward: going back to an earlier checkpoint is a new version;
- releases are numbered 1, 2, 3, ... for each population and never changed; a candidate is decided once, and its release
  appears in the same transaction; what a pending candidate or one of the newest releases needs is not deleted;
- a privacy charge is admitted and stored in one transaction, all of it or nothing, and never taken back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from covey.plans.release import Release
from covey.types.tensors import Tensors, TensorSpec, pack_tensors, specs_of, unpack_tensors
from covey.wire.messages import CandidateSummary, RoundSummary

__all__ = [
    "Admit",
    "PopulationRecord",
    "PrivacyCharge",
    "ReleaseStore",
    "Storage",
    "TaskRecord",
    "Version",
    "decode_named",
    "encode_named",
]


@dataclass(frozen=True, slots=True)
class PopulationRecord:
    """Where a population stands: the newest version of its one model.

    Attributes:
        population: its name.
        round: the number of the newest version: rounds that were committed, and roll-backs.
        checkpoint: SHA-256 of the newest checkpoint, a stored blob.
        extra: SHA-256 of what else the algorithm carries (see :func:`encode_named`), a stored blob; empty: nothing.
    """

    population: str
    round: int
    checkpoint: str
    extra: str = ""


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task of a population.

    Attributes:
        population: whose.
        name: unique within the population.
        kind: ``train`` moves the population's model; ``evaluate`` reads one of its checkpoints.
        plan: SHA-256 of the plan's archive, a stored blob.
        signature: the owner's signature over it, hex.
        settings: how its rounds go; JSON that the server reads.
        state: where it stands; a word of the server's.
        rounds: how many of its rounds are committed.
        version: the population's round when the last of them was committed; -1: none was.
        checkpoint: SHA-256 of the checkpoint that an evaluation reads; empty: the newest at the time.
    """

    population: str
    name: str
    kind: str
    plan: str
    signature: str
    settings: bytes
    state: str
    rounds: int = 0
    version: int = -1
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the model that is still kept: its round, and the SHA-256 of checkpoint and extra."""

    round: int
    checkpoint: str
    extra: str


@dataclass(frozen=True, slots=True)
class PrivacyCharge:
    """A row of the privacy ledger: what opening one sum cost.

    Attributes:
        plan: SHA-256 of the plan under which the sum was made.
        round: the number of the round, counted from 1.
        phase: of the round.
        attempt: the round's attempt; a round that is tried again is charged again.
        loss: what one use costs, as :func:`covey.privacy.ledger.encode_loss` writes it.
        times: how many uses.
    """

    plan: str
    round: int
    phase: int
    attempt: str
    loss: bytes
    times: int = 1


Admit = Callable[[Mapping[bytes, int]], None]
"""Gets what a population has spent, from loss to times, and raises where it may not spend more."""


class ReleaseStore(Protocol):
    """The releases of all populations, and the candidates for them; part of a :class:`Storage`."""

    def propose(self, population: str, candidate: CandidateSummary) -> None:
        """Add a pending candidate. Raises StorageError where its round already had one."""
        ...

    def settle(self, population: str, candidate: CandidateSummary, release: Release | None) -> None:
        """Replace the pending candidate of that round by its verdict and, promoted, add its release: both or neither.

        Raises StorageError where there is no such pending candidate, or the version is not the next one.
        """
        ...

    def publish(self, release: Release) -> None:
        """Add a release without a candidate: a rollback. Raises StorageError where its version is not the next one."""
        ...

    def candidates(self, population: str) -> tuple[CandidateSummary, ...]:
        """Return all candidates, in the order in which they stood."""
        ...

    def releases(self, population: str) -> tuple[Release, ...]:
        """Return all releases, the first version first."""
        ...


class Storage(Protocol):
    """Durable state. Calls block until the data is safe; one thread uses it at a time."""

    @property
    def release_store(self) -> ReleaseStore:
        """The releases."""
        ...

    def put_blob(self, data: bytes) -> str:
        """Store a blob, synced, and return its SHA-256. Raises StorageFullError; then nothing changed."""
        ...

    def forget(self, names: set[str]) -> None:
        """Delete blobs, but for those that anything still needs: another population may have the same bytes."""
        ...

    def hold(self, population: str, names: set[str]) -> None:
        """Keep these blobs, too, and forget those of the population's last call that are not among them.

        Held is what devices may still download, in this process: a restart holds nothing.
        """
        ...

    def blob(self, sha256: str) -> bytes:
        """Return a blob. Raises NotFoundError, or BlobHashError where the stored bytes were changed."""
        ...

    def load(self, population: str) -> PopulationRecord | None:
        """Return where a population stands, or None where it is new."""
        ...

    def create(self, record: PopulationRecord) -> None:
        """Add a population. Raises StorageError where it exists."""
        ...

    def populations(self) -> tuple[str, ...]:
        """Return the names of all populations, in the order of their creation."""
        ...

    def add_task(self, record: TaskRecord) -> None:
        """Add a task. Raises StorageError where its name is taken, or its population unknown."""
        ...

    def tasks(self, population: str) -> tuple[TaskRecord, ...]:
        """Return a population's tasks, in the order of their creation."""
        ...

    def change_task(self, population: str, name: str, state: str, settings: bytes) -> None:
        """Set a task's state and settings; all else of it is fixed, or counted. Raises StorageError where unknown."""
        ...

    def commit_round(self, population: str, summary: RoundSummary, checkpoint: bytes, extra: bytes) -> None:
        """Store the checkpoint, then in one transaction the round's row, the task's count and the new version.

        Raises StorageError where ``summary.task`` is no task of the population; then nothing changed.
        """
        ...

    def commit_evaluation(self, population: str, summary: RoundSummary) -> None:
        """In one transaction keep the row of a round that moved no model, and count it for its task."""
        ...

    def roll_back(self, population: str, summary: RoundSummary, version: Version) -> None:
        """In one transaction make a kept version the newest again, under the next number, with its row.

        Raises StorageError where ``version`` is none of :meth:`versions`; then nothing changed.
        """
        ...

    def versions(self, population: str) -> tuple[Version, ...]:
        """Return the versions whose checkpoints are kept, in order, the newest last."""
        ...

    def add_summary(self, population: str, summary: RoundSummary) -> None:
        """Keep the row of a round that was abandoned."""
        ...

    def rounds(self, population: str, after: int = 0) -> tuple[RoundSummary, ...]:
        """Return the rows, committed and abandoned, in order, without the first ``after``."""
        ...

    def charge_privacy(self, population: str, charges: Sequence[PrivacyCharge], admit: Admit) -> None:
        """In one transaction call ``admit`` with what is spent and, unless it raises, add the charges, synced."""
        ...

    def privacy_spent(self, population: str) -> Mapping[bytes, int]:
        """Return what the population has spent, from loss to times, over all its plans."""
        ...

    def privacy_charges(self, population: str) -> tuple[PrivacyCharge, ...]:
        """Return every row of the population's privacy ledger, in order."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


def encode_named(tensors: Tensors) -> bytes:
    """Encode tensors with their names, shapes and dtypes; empty for none."""
    if not tensors:
        return b""
    specs = specs_of(tensors)
    return msgspec.json.encode(specs) + b"\n" + pack_tensors(tensors, specs)


def decode_named(data: bytes) -> Tensors:
    """Invert :func:`encode_named`."""
    if not data:
        return {}
    head, _, body = data.partition(b"\n")
    return unpack_tensors(msgspec.json.decode(head, type=tuple[TensorSpec, ...]), body)
