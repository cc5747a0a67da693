"""``ring:B:N:NORM[:CLAMP]``: the secure path as the coder of a pipeline.

With secure aggregation the integers are masked and only their sum is opened. Without it (a plain round, a benchmark)
each payload is opened by itself, which gives the same sum, and protects nothing.
"""

import numpy as np

from covey.compression.secure import SecurePath
from covey.compression.stage import PrivateRandomness, Reals, Shape
from covey.types.errors import UpdateRangeError

__all__ = ["Ring"]


class Ring:
    """B bits for each rotated (and subsampled) coordinate, for at most N devices whose segments have about norm NORM.

    Args:
        bits: B.
        n_max: N.
        norm: NORM.
        clamp: CLAMP: rotated coordinates are clamped at so many of their deviations.
        keep: the part that is sent: what ``subsample:P`` before it says.
    """

    unbiased = False  # the clamp; rounding alone is unbiased
    composes_with_secagg = True

    def __init__(self, bits: int, n_max: int, norm: float, clamp: float = 4.0, keep: float = 1.0) -> None:
        self.bits, self.n_max, self.norm, self.clamp, self.keep = bits, n_max, norm, clamp, keep
        before = "hd|" if keep == 1.0 else f"hd|subsample:{keep:.6g}|"
        self.text = f"{before}ring:{bits}:{n_max}:{norm:.6g}" + ("" if clamp == 4.0 else f":{clamp:.6g}")

    def path(self, length: int) -> SecurePath:
        """Return the secure path for a segment of this length. Raises LayoutError: N devices have no room in B bits."""
        return SecurePath(length, self.n_max, self.bits, self.norm, self.keep, self.clamp)

    def max_bytes(self, shape: Shape) -> int:
        """Return the exact size."""
        return self.path(shape[0] * shape[1]).num_bytes

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Encode as a device of a secure round does, without the mask."""
        path = self.path(values.size)
        return path.pack(path.encode(values.reshape(-1), seed, private))

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Open one device's residues."""
        path = self.path(shape[0] * shape[1])
        residues = path.unpack(payload)
        half = np.uint32(1 << (self.bits - 1))
        magnitudes = np.where(residues < half, residues, np.uint32((1 << self.bits) - 1) - residues + np.uint32(1))
        if magnitudes.max() > path.bound:
            raise UpdateRangeError("ring", expected=f"integers of magnitude at most {path.bound}", got="a larger one")
        return path.open(residues, seed).reshape(shape)
