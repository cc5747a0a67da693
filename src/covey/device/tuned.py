"""The model that was tuned on this device: ``tuned``, beside the release that it was tuned from.

It is used with that release only, and stays here. An evaluation may measure with it
(:data:`covey.plans.manifest.PERSONAL`): what leaves then are the sums of a comparison.
"""

import msgspec

from covey.device.files import storage_errors, written_whole
from covey.device.released import ReleaseStore, Served
from covey.plans.manifest import Manifest
from covey.types.errors import LayoutError, StorageError
from covey.types.tensors import Tensors, pack_tensors, sha256_hex, unpack_tensors

__all__ = ["TunedModel", "personal_params"]


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """What is written before the parameters."""

    checkpoint: str
    plan: str
    sha256: str


class TunedModel:
    """The file of one population. It is written whole, so that several processes may use it."""

    def __init__(self, store: ReleaseStore) -> None:
        """Name the file beside the releases of ``store``; it is there while a tuned model is in use."""
        self._path = store.folder / "tuned"

    def stamp(self) -> object:
        """Return what changes when another process stores a model or takes it away; quick."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0

    def load(self, served: Served) -> Tensors | None:
        """Return the parameters if they were tuned from this release, and are whole; else the release serves."""
        try:
            with storage_errors("personal model"):
                if not self._path.exists():
                    return None
                head, _, data = self._path.read_bytes().partition(b"\n")
            tuned = msgspec.json.decode(head, type=_Head)
            if (tuned.plan, tuned.checkpoint) != (served.release.plan, served.release.checkpoint):
                return None
            return unpack_tensors(served.plan.manifest.params, data) if sha256_hex(data) == tuned.sha256 else None
        except (StorageError, msgspec.MsgspecError, UnicodeDecodeError, LayoutError):
            return None  # the release serves: it is always there

    def keep(self, served: Served, params: Tensors) -> None:
        """Use these parameters from now on, with this release.

        Raises:
            StorageFullError, StorageError: what was in use stays in use.
        """
        data = pack_tensors(params, served.plan.manifest.params)
        head = _Head(checkpoint=served.release.checkpoint, plan=served.release.plan, sha256=sha256_hex(data))
        with storage_errors("personal model"), written_whole(self._path) as file:
            file.write(msgspec.json.encode(head) + b"\n" + data)

    def forget(self) -> None:
        """Use the release itself from now on. Raises StorageError."""
        with storage_errors("personal model"):
            self._path.unlink(missing_ok=True)


def personal_params(store: ReleaseStore, manifest: Manifest) -> Tensors:
    """Return the tuned parameters that this device uses, if a plan can evaluate them; empty where there are none.

    The plan must have the same parameters and the same fields of examples as the one that they were tuned under: parts
    of the examples are dealt by the content of those fields (:mod:`covey.device.comparison`).

    Raises:
        StorageError: the release that they belong to cannot be read.
    """
    served = store.load() if store.is_wanted else None
    if served is None:
        return {}
    own = served.plan.manifest
    if (own.params, own.examples.fields) != (manifest.params, manifest.examples.fields):
        return {}
    return TunedModel(store).load(served) or {}
