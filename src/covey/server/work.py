"""What the rounds of a task are for: a training moves the population's model, an evaluation measures a checkpoint.

Both give a round the same five things: what is broadcast, the per-round values, the charge that a sum costs, what an
opened sum means, and the commit.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from covey.algorithms.algorithm import Aggregate, ServerState
from covey.algorithms.fedbuff import Asynchrony, asynchrony
from covey.algorithms.registry import server_half
from covey.compression.checkpoint import download_num_bytes
from covey.plans.manifest import Manifest
from covey.privacy.randomness import Randomness
from covey.server.download import Offered, encoded_checkpoint
from covey.server.messages import public_seed
from covey.server.opening import opened_reals
from covey.server.private import PrivateSums
from covey.server.settings import check_asynchronous, check_schedule, check_settings, hyper_in
from covey.server.tasks import Task
from covey.storage.interface import PopulationRecord, Storage, decode_named, encode_named
from covey.types.errors import LayoutError, UsageError
from covey.types.segments import SegmentSum
from covey.types.tensors import Tensors, pack_tensors, packed_num_bytes, sha256_hex, unpack_tensors
from covey.wire.messages import BlobRef, RoundSummary

__all__ = ["Evaluation", "Training", "Work", "checkpoint_ref", "plan_ref"]


class Work(Protocol):
    """What a round needs to know of its task. ``task`` is replaced when its record changes."""

    task: Task
    manifest: Manifest
    plan: BlobRef

    @property
    def number(self) -> int:
        """The number of its next round."""
        ...

    @property
    def checkpoint(self) -> BlobRef:
        """What devices begin with: a version of the model, exact."""
        ...

    @property
    def hyper(self) -> dict[str, float]:
        """The per-round values."""
        ...

    @property
    def asynchrony(self) -> Asynchrony | None:
        """How far its devices may be apart; None: they work in rounds."""
        ...

    def affordable(self) -> bool:
        """Return whether the privacy budget allows one more round."""
        ...

    def begin(self) -> None:
        """Start a round from what is committed."""
        ...

    def download(self) -> bytes | None:
        """Return the checkpoint as devices download it; None: as it is stored. Raises UpdateNotFiniteError."""
        ...

    def shared(self, phase: int) -> Tensors:
        """Return what is broadcast besides the checkpoint."""
        ...

    def charge(self, phase: int, attempt: str) -> None:
        """Pay for a secure sum before its masks come off. Raises BudgetExhaustedError or StorageError."""
        ...

    def apply(self, phase: int, attempt: str, total: SegmentSum) -> Mapping[str, float]:
        """Open a sum and apply it; return the means of its metrics. Raises CoveyError; then nothing is committed."""
        ...

    def commit(self, summary: RoundSummary) -> RoundSummary:
        """Store the round; return its row with the checkpoint. Raises StorageError; then nothing is committed."""
        ...


class Training:
    """A training task. Law: what is committed changes in :meth:`commit` alone."""

    def __init__(
        self,
        task: Task,
        manifest: Manifest,
        storage: Storage,
        *,
        noise: Randomness | None = None,
        simulated: bool = False,
    ) -> None:
        """Take up the population's model where it stands.

        Args:
            task: which.
            manifest: of its plan.
            storage: what the server keeps.
            noise: for plans with differential privacy.
            simulated: whether seeded noise is accepted.

        Raises:
            UsageError: settings that cannot work with the plan, or a plan of another model.
            AsynchronousError: an asynchronous algorithm with secure aggregation or differential privacy.
            CompressionSpecError: a plan whose checkpoints cannot be encoded.
            PrivacyError: noise that cannot be; BudgetExhaustedError where the population has spent what it may.
        """
        self._algorithm = server_half(manifest.algorithm.name, manifest.algorithm.settings)
        if self._algorithm.asynchronous:
            check_asynchronous(task.settings.round, manifest)
        check_settings(task.settings.round, manifest)
        check_schedule(task.settings)
        download_num_bytes(manifest.download, manifest.params)
        self.task = task
        self.manifest = manifest
        self.plan = plan_ref(task, storage)
        self._storage = storage
        self._record = _population(task, storage)
        packed = storage.blob(self._record.checkpoint)
        params = _unpack_model(task, manifest, packed)
        stored = decode_named(storage.blob(self._record.extra)) if self._record.extra else {}
        self._private: PrivateSums | None = None
        if manifest.privacy.noise is not None:
            self._private = PrivateSums(task.record, manifest, noise, simulated=simulated)
            stored = self._private.begin(storage, task.settings.round.hyper, stored)
        first = self._algorithm.init(params).extra
        self._carried = _shapes(first)
        # What another algorithm carried means nothing to this one.
        extra = stored if _shapes(stored) == self._carried else first
        self._committed = self._next = ServerState(params, extra)
        self._checkpoint = checkpoint_ref(packed)
        self._offered: Offered | None = None

    @property
    def number(self) -> int:
        """The number of the next round, and of the version of the model that it makes."""
        return self._record.round + 1

    @property
    def checkpoint(self) -> BlobRef:
        """The newest version of the model."""
        return self._checkpoint

    @property
    def hyper(self) -> dict[str, float]:
        """The settings' per-round values, with the clip of differential privacy."""
        hyper = hyper_in(self.task.settings.round, self.manifest, self.number)
        return self._private.hyper(hyper) if self._private else hyper

    @property
    def asynchrony(self) -> Asynchrony | None:
        """See :class:`Work`."""
        if not self._algorithm.asynchronous:
            return None
        return asynchrony(self.manifest.algorithm.settings, self.task.settings.round.goal)

    def affordable(self) -> bool:
        """See :class:`Work`."""
        return self._private is None or self._private.affordable(self._storage)

    def begin(self) -> None:
        """See :class:`Work`."""
        self._next, self._offered = self._committed, None

    def download(self) -> bytes | None:
        """See :class:`Work`. From here on a round stands on what its devices decode.

        In asynchronous aggregation devices of several versions are in one sum: it goes to the exact model.
        """
        if not self.manifest.download:
            return None
        if self._algorithm.asynchronous:
            return encoded_checkpoint(pack_tensors(self._committed.params, self.manifest.params), self.manifest)
        if self._offered is None:
            self._offered = Offered.of(pack_tensors(self._committed.params, self.manifest.params), self.manifest)
            self._next = ServerState(self._offered.params, self._committed.extra)
        return self._offered.data

    def shared(self, phase: int) -> Tensors:
        """See :class:`Work`."""
        return self._algorithm.phases[phase].shared(self._next)

    def charge(self, phase: int, attempt: str) -> None:
        """See :class:`Work`."""
        if self._private is not None:
            self._private.charge(self._storage, phase, self.number, attempt)

    def apply(self, phase: int, attempt: str, total: SegmentSum) -> Mapping[str, float]:
        """See :class:`Work`."""
        if self._private is None:
            aggregate = _opened(self.manifest, phase, attempt, total)
        elif self.manifest.privacy.mode == "secure":  # charged when the shards were closed
            aggregate = self._private.read(total, phase, attempt)
        else:
            aggregate = self._private.open(self._storage, total, phase, self.number, attempt)
        self._next = self._algorithm.phases[phase].apply(self._next, aggregate)
        return aggregate.means()

    def commit(self, summary: RoundSummary) -> RoundSummary:
        """See :class:`Work`."""
        if _shapes(self._next.extra) != self._carried:  # a restart would take it for another algorithm's
            raise LayoutError("server state", expected="the names and shapes of the algorithm's init", got="others")
        params = self._offered.carried_over(self._next.params) if self._offered else self._next.params
        packed = pack_tensors(params, self.manifest.params)
        checkpoint = checkpoint_ref(packed)
        extra = self._next.extra if self._private is None else self._private.state(self._next.extra)
        row = msgspec.structs.replace(summary, checkpoint=checkpoint.sha256)
        self._storage.commit_round(self.task.record.population, row, packed, encode_named(extra))
        self._record = _population(self.task, self._storage)
        self._committed = ServerState(params, self._next.extra)
        self._checkpoint = checkpoint
        return row


class Evaluation:
    """An evaluation task: devices measure a checkpoint on their own examples, and nothing moves."""

    def __init__(self, task: Task, manifest: Manifest, storage: Storage) -> None:
        """Read the task's checkpoint, or the newest at each round.

        Raises:
            UsageError: settings that cannot work with the plan, or a plan with noise: metrics are opened without.
            NotFoundError: the chosen checkpoint is not kept.
        """
        check_settings(task.settings.round, manifest)
        check_schedule(task.settings)
        if manifest.privacy.noise is not None:
            raise UsageError(
                f"plan of task {task.name!r}",
                expected="no noise: an evaluation has metrics only, and under noise they are absent",
                got=f"{manifest.privacy.noise.kind} noise",
            )
        self.task = task
        self.manifest = manifest
        self.plan = plan_ref(task, storage)
        self._storage = storage
        self._checkpoint = checkpoint_ref(self._read())

    @property
    def number(self) -> int:
        """The number of the task's next round."""
        return self.task.record.rounds + 1

    @property
    def checkpoint(self) -> BlobRef:
        """What is evaluated."""
        return self._checkpoint

    @property
    def hyper(self) -> dict[str, float]:
        """The settings' per-round values."""
        return dict(self.task.settings.round.hyper)

    @property
    def asynchrony(self) -> Asynchrony | None:
        """Return None: all measure one checkpoint."""
        return None

    def affordable(self) -> bool:
        """Return True: it opens nothing that is paid for."""
        return True

    def begin(self) -> None:
        """Take the newest checkpoint, unless one was chosen."""
        self._checkpoint = checkpoint_ref(self._read())

    def download(self) -> bytes | None:
        """Return None: what is measured is exact."""
        return None

    def shared(self, phase: int) -> Tensors:
        """Return the model that the first is compared with, where there is one."""
        other = self.task.settings.reference
        return unpack_tensors(self.manifest.params, self._storage.blob(other)) if other else {}

    def charge(self, phase: int, attempt: str) -> None:
        """Do nothing."""

    def apply(self, phase: int, attempt: str, total: SegmentSum) -> Mapping[str, float]:
        """Return the means; whatever else is in the sum changes nothing."""
        return _opened(self.manifest, phase, attempt, total).means()

    def commit(self, summary: RoundSummary) -> RoundSummary:
        """See :class:`Work`."""
        row = msgspec.structs.replace(summary, checkpoint=self._checkpoint.sha256)
        self._storage.commit_evaluation(self.task.record.population, row)
        return row

    def _read(self) -> bytes:
        chosen = self.task.settings.candidate or self.task.record.checkpoint
        return self._storage.blob(chosen or _population(self.task, self._storage).checkpoint)


def checkpoint_ref(data: bytes) -> BlobRef:
    """Return where a checkpoint, or another binary, is served."""
    name = sha256_hex(data)
    return BlobRef(sha256=name, num_bytes=len(data), path=f"/v1/checkpoints/{name}")


def _unpack_model(task: Task, manifest: Manifest, packed: bytes) -> Tensors:
    if len(packed) != (needed := packed_num_bytes(manifest.params)):
        raise UsageError(
            f"plan of task {task.name!r}",
            expected=f"the population's model, {len(packed)} bytes",
            got=f"one of {needed} bytes",
            hint="another model needs a population of its own",
        )
    return unpack_tensors(manifest.params, packed)


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in tensors.items()}


def _population(task: Task, storage: Storage) -> PopulationRecord:
    record = storage.load(task.record.population)
    assert record is not None, "a task has its population"
    return record


def plan_ref(task: Task, storage: Storage) -> BlobRef:
    """Return where a task's plan is served."""
    plan = task.record.plan
    return BlobRef(sha256=plan, num_bytes=len(storage.blob(plan)), path=f"/v1/plans/{plan}")


def _opened(manifest: Manifest, phase: int, attempt: str, total: SegmentSum) -> Aggregate:
    reals = opened_reals(manifest, phase, total, public_seed(attempt))
    aggregate = Aggregate.opened(total, manifest.phases[phase], manifest.metrics, reals)
    total.clear()
    return aggregate
