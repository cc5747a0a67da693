"""What the devices of a simulation keep for themselves, in a folder that all workers share.

A state bears the number of the round that made it, and a session sees only those of earlier rounds: a round that is
tried again, or a run that is resumed, finds every device as it was.
"""

from pathlib import Path

from covey.device.files import storage_errors
from covey.plans.manifest import Phase
from covey.types.tensors import Tensors, pack_tensors, unpack_tensors

__all__ = ["DeviceStates"]

_KEPT_VERSIONS = 2


class DeviceStates:
    """The states of all devices that took part. Several processes may use one folder, each device in one of them."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``, which exists."""
        self._folder = folder

    def load(self, device: int, before_round: int, phase: Phase) -> Tensors:
        """Return what a device kept before a round; nothing in its first session."""
        if not phase.kept:
            return {}
        rounds = [n for n in self._rounds(device) if n < before_round]
        if not rounds:
            return {}
        with storage_errors("device states"):
            return unpack_tensors(phase.kept, self._path(device, rounds[-1]).read_bytes())

    def save(self, device: int, round_number: int, phase: Phase, kept: Tensors) -> None:
        """Store what a device keeps after a round in which its update was counted."""
        if not phase.kept:
            return
        path = self._path(device, round_number)
        with storage_errors("device states"):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(pack_tensors(kept, phase.kept))
            partial.replace(path)
            for old in self._rounds(device)[:-_KEPT_VERSIONS]:
                self._path(device, old).unlink(missing_ok=True)

    def _rounds(self, device: int) -> list[int]:
        files = self._path(device, 0).parent.glob(f"{device}-*.params")
        return sorted(int(p.stem.rpartition("-")[2]) for p in files)

    def _path(self, device: int, round_number: int) -> Path:
        return self._folder / f"{device % 1000:03d}" / f"{device}-{round_number}.params"
