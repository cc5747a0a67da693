"""Subsampling: send a random part of the coordinates, scaled up (1610.05492, section 3, "subsampling").

Deviation from the paper, which draws a subset: each row is cut into ``m`` runs of (nearly) equal length s and one
coordinate of each run is sent, times s. Every coordinate is still sent with probability 1/s and the error is the same,
``(s - 1) ||x||^2``, but the number of coordinates is exact and only one draw is made for each that is sent.
"""

import math

import numpy as np
from numpy.typing import NDArray

from covey.compression.public_randomness import picks
from covey.compression.stage import Reals, Shape
from covey.types.errors import UpdateFormatError

__all__ = ["Subsample", "kept_per_row", "positions"]


def kept_per_row(width: int, keep: float) -> int:
    """Return how many of a row's values are sent: at least one."""
    return max(1, min(width, math.ceil(keep * width)))


def positions(shape: Shape, kept: int, seed: bytes, label: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the flat positions of the values that are sent, ``[rows, kept]``, and the length of each one's run."""
    rows, width = shape
    edges = np.arange(kept + 1, dtype=np.int64) * width // kept
    sizes = np.diff(edges)
    drawn = picks(seed, label, np.broadcast_to(sizes, (rows, kept)).reshape(-1)).reshape(rows, kept)
    return drawn + edges[:-1] + np.arange(rows, dtype=np.int64)[:, None] * width, sizes


class Subsample:
    """``subsample:P``: send a fraction P of the coordinates, each times the length of its run.

    Args:
        keep: P, above 0 and at most 1.
    """

    unbiased = True
    composes_with_secagg = True

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.text = f"subsample:{keep:.6g}"

    def shape(self, shape: Shape) -> Shape:
        """Return ``[rows, kept]``."""
        return shape[0], kept_per_row(shape[1], self.keep)

    def max_side_bytes(self, shape: Shape) -> int:
        """Return 0: the seed says which coordinates."""
        return 0

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Gather."""
        at, sizes = positions(values.shape, kept_per_row(values.shape[1], self.keep), seed, "subsample")
        return values.reshape(-1)[at] * sizes.astype(np.float32), b""

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Scatter; what was not sent is zero."""
        if len(side):
            raise UpdateFormatError("subsample", expected="nothing beside the values", got=f"{len(side)} bytes")
        out = np.zeros(shape, np.float32)
        at, _ = positions(shape, values.shape[1], seed, "subsample")
        out.reshape(-1)[at] = values
        return out
