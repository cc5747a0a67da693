"""Structured updates: an update that has few degrees of freedom by construction (1610.05492, section 2).

*Random mask*: only the unmasked entries, chosen by a seed, fresh for each device and round, are trained; the others do
not move, so that nothing is lost by not sending them. That is what ``mask:P`` does where the plan trains in place
(`Phase.mask`); on an update that was trained without a mask it drops the rest, which is biased.

*Low rank*: ``H = A B`` with A chosen by a seed and B sent. Deviation from the paper, which trains B in place and takes
one A for each layer: here B is the projection of a finished update (a sketch), A has entries of ±1/sqrt(k), and the
matrix is the update in rows of 256 values, so that ``E[A A^T] = I`` and the sketch is unbiased for every update.
"""

import numpy as np
from numpy.typing import NDArray

from covey.compression.public_randomness import expand_signs, sign_bytes
from covey.compression.stage import Reals, Shape
from covey.compression.subsampling import kept_per_row, positions
from covey.types.errors import UpdateFormatError

__all__ = ["LowRank", "RandomMask"]

_SKETCH_WIDTH = 256


class RandomMask:
    """``mask:P``: send the fraction P of the coordinates that was trained, unscaled.

    Exact on an update that was trained under the same mask, and then the update itself is what the paper averages; not
    unbiased for an update that was not.

    Args:
        keep: P, above 0 and at most 1.
    """

    unbiased = False
    composes_with_secagg = True

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.text = f"mask:{keep:.6g}"

    def positions(self, length: int, seed: bytes) -> NDArray[np.int64]:
        """Return the increasing positions of a vector that are trained and sent under this seed."""
        at, _ = positions((1, length), kept_per_row(length, self.keep), seed, "mask")
        return at.reshape(-1)

    def shape(self, shape: Shape) -> Shape:
        """Return ``[1, kept]``: the mask is one over the whole vector."""
        return 1, kept_per_row(shape[0] * shape[1], self.keep)

    def max_side_bytes(self, shape: Shape) -> int:
        """Return 0: the seed says which coordinates."""
        return 0

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Gather."""
        return values.reshape(-1)[self.positions(values.size, seed)].reshape(1, -1), b""

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Scatter; what was not trained did not move."""
        if len(side):
            raise UpdateFormatError("mask", expected="nothing beside the values", got=f"{len(side)} bytes")
        out = np.zeros(shape, np.float32)
        out.reshape(-1)[self.positions(out.size, seed)] = values.reshape(-1)
        return out


class LowRank:
    """``lowrank:K``: send K numbers for each 256 coordinates, random projections of them.

    The error is ``(255 / K) ||x||^2`` on average: worse than subsampling's at the same size, as in the paper.

    Args:
        rank: K, 1 to 256.
    """

    unbiased = True
    composes_with_secagg = True

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.text = f"lowrank:{rank}"

    def shape(self, shape: Shape) -> Shape:
        """Return ``[1, rank * rows of 256]``."""
        return 1, self.rank * -(-shape[0] * shape[1] // _SKETCH_WIDTH)

    def max_side_bytes(self, shape: Shape) -> int:
        """Return 0: the seed says which projections."""
        return 0

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Project: ``B = H A``."""
        rows = -(-values.size // _SKETCH_WIDTH)
        padded = np.zeros((rows, _SKETCH_WIDTH), np.float32)
        padded.reshape(-1)[: values.size] = values.reshape(-1)
        return (padded @ self._projection(seed)).reshape(1, -1), b""

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Expand: ``B A^T``."""
        if len(side):
            raise UpdateFormatError("lowrank", expected="nothing beside the values", got=f"{len(side)} bytes")
        wide = values.reshape(-1, self.rank) @ self._projection(seed).T
        return wide.reshape(-1)[: shape[0] * shape[1]].reshape(shape)

    def _projection(self, seed: bytes) -> Reals:
        count = _SKETCH_WIDTH * self.rank
        flips = expand_signs(sign_bytes(seed, "lowrank", count))[:count].reshape(_SKETCH_WIDTH, self.rank)
        return np.asarray(flips / np.sqrt(np.float32(self.rank)), np.float32)
