"""A round's checkpoint as its devices get it, where the plan has it encoded (:mod:`covey.compression.checkpoint`).

Two models, one lineage. The *exact* float32 model is what is committed, released and gone on from. Devices train from
what they *decode*; their deltas are from there, and the server applies its sum to the very same bits. What that moved
is then carried over to the exact model, so that the error of one encoding is never part of a model: it does not add up
over rounds, and a step below the quantizer's interval is not lost (error feedback on the server; docs/decisions/0024).
"""

from dataclasses import dataclass

import numpy as np

from covey.compression.checkpoint import decode_download, encode_download
from covey.compression.stage import Reals
from covey.plans.manifest import Manifest
from covey.privacy.randomness import AesCtr
from covey.types.rng import derive_seed
from covey.types.tensors import Array, Tensors, sha256_hex, unpack_tensors

__all__ = ["Offered", "encoded_checkpoint"]


def encoded_checkpoint(packed: bytes, manifest: Manifest) -> bytes:
    """Return what devices download in place of a checkpoint: it follows from that and the plan, also after a restart.

    Args:
        packed: the exact checkpoint.
        manifest: of the plan, with a ``download``.

    Raises:
        UpdateNotFiniteError: a model with a NaN or an infinity.
    """
    # Of the checkpoint, so that a round that is tried again, or a simulation that is resumed, sends the same bytes.
    rounding = AesCtr(derive_seed(bytes.fromhex(sha256_hex(packed)), "download", manifest.download), private=False)
    return encode_download(unpack_tensors(manifest.params, packed), manifest.params, manifest.download, rounding)


@dataclass(frozen=True, slots=True)
class Offered:
    """What the devices of a round begin from.

    Attributes:
        exact: the model that is committed.
        data: what they download.
        params: what they decode, bit for bit.
    """

    exact: Tensors
    data: bytes
    params: Tensors

    @classmethod
    def of(cls, packed: bytes, manifest: Manifest) -> "Offered":
        """Return it for the exact checkpoint ``packed``. Raises UpdateNotFiniteError: a model that diverged."""
        data = encoded_checkpoint(packed, manifest)
        decoded = decode_download(data, manifest.params, manifest.download)
        return cls(unpack_tensors(manifest.params, packed), data, decoded)

    def carried_over(self, moved: Tensors) -> Tensors:
        """Return the exact model, moved as :attr:`params` were to become ``moved``."""
        return {name: _reals(value) + self._left_out(name) for name, value in moved.items()}

    def _left_out(self, name: str) -> Reals:
        return _reals(self.exact[name]) - _reals(self.params[name])


def _reals(tensor: Array) -> Reals:
    return np.asarray(tensor, np.float32)
