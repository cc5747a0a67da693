"""``ring:B:N:NORM[:CLAMP]``: the secure path as the coder of a pipeline.

With secure aggregation the integers are masked and only their sum is opened. Without it (a plain round, a benchmark)
each payload is opened by itself, which gives the same sum, and protects nothing.

Under differential privacy NORM is the word ``clip``: the step follows from the length to which contributions are
clipped, which may change from round to round, and rounding and noise are :mod:`covey.privacy`'s. What is left of this
path is its linear part; :class:`Residues` packs the integers that are not masked.
"""

import numpy as np

from covey.compression.packing import packed_bytes, unpack
from covey.compression.secure import Projection, SecurePath, centred, pack_residues
from covey.compression.stage import PrivateRandomness, Reals, Shape
from covey.types.errors import CompressionSpecError, UpdateRangeError

__all__ = ["CLIP_NORM", "Residues", "Ring"]

CLIP_NORM = "clip"
"""What a spec says in place of a number where the norm is the clip of the plan's noise."""


class Ring:
    """B bits for each rotated (and subsampled) coordinate, for at most N devices whose segments have about norm NORM.

    Args:
        bits: B.
        n_max: N.
        norm: NORM; None: the clip of the plan's noise.
        clamp: CLAMP: rotated coordinates are clamped at so many of their deviations.
        keep: the part that is sent: what ``subsample:P`` before it says.
    """

    unbiased = False  # the clamp; rounding alone is unbiased
    composes_with_secagg = True

    def __init__(self, bits: int, n_max: int, norm: float | None, clamp: float = 4.0, keep: float = 1.0) -> None:
        self.bits, self.n_max, self.norm, self.clamp, self.keep = bits, n_max, norm, clamp, keep
        before = "hd|" if keep == 1.0 else f"hd|subsample:{keep:.6g}|"
        named = CLIP_NORM if norm is None else f"{norm:.6g}"
        self.text = f"{before}ring:{bits}:{n_max}:{named}" + ("" if clamp == 4.0 else f":{clamp:.6g}")

    def projection(self, length: int) -> Projection:
        """Return the linear part for a segment of this length."""
        return Projection(length, self.keep)

    def path(self, length: int) -> SecurePath:
        """Return the secure path for a segment of this length.

        Raises:
            LayoutError: N devices have no room in B bits.
            CompressionSpecError: the norm is that of a plan's noise.
        """
        if self.norm is None:
            raise CompressionSpecError(
                f"compression {self.text!r}",
                expected="the norm of an update, or differential privacy beside it",
                got=CLIP_NORM,
                hint=f"{CLIP_NORM} stands for the clip of --privacy; covey compression ring measures a norm",
            )
        return SecurePath(length, self.n_max, self.bits, self.norm, self.keep, self.clamp)

    def max_bytes(self, shape: Shape) -> int:
        """Return the exact size."""
        return packed_bytes(self.projection(shape[0] * shape[1]).num_values, self.bits)

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Encode as a device of a secure round does, without the mask."""
        path = self.path(values.size)
        return path.pack(path.encode(values.reshape(-1), seed, private))

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Open one device's residues."""
        path = self.path(shape[0] * shape[1])
        integers = centred(path.unpack(payload), self.bits)
        if np.abs(integers).max() > path.bound:
            raise UpdateRangeError("ring", expected=f"integers of magnitude at most {path.bound}", got="a larger one")
        return path.reals(integers, seed).reshape(shape)


class Residues:
    """Integers modulo ``2**bits``, packed: what a ring under noise sends where nothing is masked (a simulation).

    Values are integers of magnitude below ``2**(bits - 1)`` and below ``2**24``, which float32 holds exactly; not a
    stage of a spec.

    Args:
        bits: 2 to 32.
    """

    unbiased = True
    composes_with_secagg = True

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.text = f"residues:{bits}"

    def max_bytes(self, shape: Shape) -> int:
        """Return the exact size."""
        return packed_bytes(shape[0] * shape[1], self.bits)

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Pack. Raises UpdateRangeError for an integer that the ring does not hold."""
        integers = values.reshape(-1).astype(np.int64)
        if np.abs(integers).max() >= 1 << (self.bits - 1):
            raise UpdateRangeError("ring", expected=f"integers that {self.bits} bits hold", got="a larger one")
        return pack_residues((integers & ((1 << self.bits) - 1)).astype(np.uint32), self.bits)

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Unpack and centre."""
        residues = unpack(payload, shape[0] * shape[1], self.bits).astype(np.uint32, copy=False)
        return centred(residues, self.bits).astype(np.float32).reshape(shape)
