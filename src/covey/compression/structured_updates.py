"""Structured updates: an update that has few degrees of freedom by construction (1610.05492, section 2).

*Random mask*: only the unmasked entries, chosen by a seed, fresh for each device and round, are trained; the others do
not move, so that nothing is lost by not sending them. That is what ``mask:P`` does where the plan trains in place
(``Phase.trained_in_place``); on an update that was trained without a mask it drops the rest, which is biased.

*Low rank*: ``H = B A^T`` with A chosen by a seed, fresh for each device and round, and B trained and sent. Deviations
from the paper, which takes one A for each layer: the update is one matrix, in rows of 256 values, so that the spec
needs no layer's shape (what is left at the end is trained and sent whole); and A has orthonormal columns (some of a
Hadamard matrix, with random signs on its rows: all entries are exactly ±1/16), so that a step on B is the projection of
a step on H, at any learning rate that H stands.

Neither is unbiased for an update that was trained without it: :class:`covey.compression.subsampling.Subsample` is.
"""

import numpy as np
from numpy.typing import NDArray

from covey.compression.public_randomness import expand_signs, sign_bytes
from covey.compression.rotation import hadamard
from covey.compression.stage import Reals, Shape
from covey.compression.subsampling import kept_per_row, positions
from covey.types.errors import UpdateFormatError

__all__ = ["ROW_VALUES", "LowRank", "RandomMask"]

ROW_VALUES = 256
"""Of the matrix that ``lowrank`` makes of an update."""


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
    """``lowrank:K``: send K numbers for each 256 coordinates, those of B, unscaled; what is left of a row whole.

    Exact, up to float32, on an update that was trained under the same A; the projection of one that was not.

    Args:
        rank: K, 1 to 256.
    """

    unbiased = False
    composes_with_secagg = True

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.text = f"lowrank:{rank}"

    def basis(self, seed: bytes) -> Reals:
        """Return A, ``[256, K]``: orthonormal columns, entries of 1/16 in magnitude."""
        flips = expand_signs(sign_bytes(seed, "lowrank/signs", ROW_VALUES))
        columns, _ = positions((1, ROW_VALUES), self.rank, seed, "lowrank")
        return np.ascontiguousarray(flips[:, None] * hadamard(ROW_VALUES)[:, columns.reshape(-1)])

    def shape(self, shape: Shape) -> Shape:
        """Return ``[1, rank * whole rows of 256 + what is left]``."""
        rows, rest = divmod(shape[0] * shape[1], ROW_VALUES)
        return 1, self.rank * rows + rest

    def max_side_bytes(self, shape: Shape) -> int:
        """Return 0: the seed says which A."""
        return 0

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Return ``B = H A``."""
        flat, whole = values.reshape(-1), values.size - values.size % ROW_VALUES
        inside = flat[:whole].reshape(-1, ROW_VALUES) @ self.basis(seed)
        return np.concatenate([inside.reshape(-1), flat[whole:]]).reshape(1, -1), b""

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Expand: ``B A^T``."""
        if len(side):
            raise UpdateFormatError("lowrank", expected="nothing beside the values", got=f"{len(side)} bytes")
        flat, inside = values.reshape(-1), self.rank * (shape[0] * shape[1] // ROW_VALUES)
        wide = flat[:inside].reshape(-1, self.rank) @ self.basis(seed).T
        return np.concatenate([wide.reshape(-1), flat[inside:]]).reshape(shape)
