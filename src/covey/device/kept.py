"""What a device keeps for itself from one session to the next: SCAFFOLD's control variate, say. It is never sent.

Law: the state on disk is that of the last session that the server counted. A session that was lost, refused or stopped
leaves the former one, so that the device and the server's sum agree on what was contributed.
"""

import dataclasses
from pathlib import Path

from covey.device.files import folder_name, storage_errors, written_whole
from covey.device.trainer import LocalResult, TrainingJob
from covey.types.errors import CoveyError
from covey.types.tensors import Tensors, pack_tensors, sha256_hex, unpack_tensors

__all__ = ["KeptState"]


class KeptState:
    """A folder with one file for each population and algorithm. Not thread-safe: one session at a time."""

    def __init__(self, folder: Path, population: str) -> None:
        """Use a folder of the population's own in ``folder``; it is made when something is kept."""
        self._folder = folder / folder_name(population)
        self._pending: tuple[Path, bytes] | None = None

    def given(self, job: TrainingJob) -> TrainingJob:
        """Return the job with what this device kept; as it is, where the plan keeps nothing or nothing is there."""
        self._pending = None
        specs = job.plan.manifest.phases[job.phase].kept
        if not specs:
            return job
        try:
            kept: Tensors = unpack_tensors(specs, self._path(job).read_bytes())
        except (OSError, CoveyError):
            return job  # a first session, another model, or a damaged file: all begin anew, at zero
        return dataclasses.replace(job, kept=kept)

    def trained(self, job: TrainingJob, result: LocalResult) -> LocalResult:
        """Hold what shall be kept if the update is counted, and return the result."""
        specs = job.plan.manifest.phases[job.phase].kept
        self._pending = (self._path(job), pack_tensors(result.kept, specs)) if specs else None
        return result

    def ended(self, *, counted: bool) -> None:
        """Store what was held, or forget it.

        Raises:
            StorageFullError, StorageError: it could not be written; the former state is still there.
        """
        pending, self._pending = self._pending, None
        if pending is None or not counted:
            return
        path, data = pending
        with storage_errors("kept state"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(data)

    def _path(self, job: TrainingJob) -> Path:
        manifest = job.plan.manifest
        # Not by the plan's hash: the server's half of the state outlives a plan, and so must the device's.
        name = sha256_hex("\x00".join((manifest.task, manifest.algorithm.name)).encode())
        return self._folder / f"{name[:32]}.params"
