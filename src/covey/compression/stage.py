"""What a stage of a compression pipeline is.

Values travel through a pipeline as one float32 array of shape ``[rows, width]``: one row at first; a rotation makes
each of its blocks a row, and every row has scales of its own. A pipeline is any number of *transforms* (reals to reals)
and then one *coder* (reals to bytes).

Two kinds of randomness, never the same one: *public* (rotation, subsampling), derived by both sides from a 32-byte
seed, and *private* (rounding), the device's own. One seed for both would invite shared rounding errors, and noise that
the server can predict.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK_VALUES", "Coder", "PrivateRandomness", "Reals", "Shape", "Transform", "tiles", "uniforms"]

Reals = NDArray[np.float32]
Shape = tuple[int, int]

CHUNK_VALUES = 1 << 16
"""Stages work through about so many values at a time: their scratch stays in the second-level cache, and small."""


class PrivateRandomness(Protocol):
    """A device's own random bytes: on a device from the operating system's seed, in a simulation injected."""

    def take(self, num_bytes: int) -> bytes:
        """Return the next ``num_bytes`` bytes; none of them is ever returned again."""
        ...


class Transform(Protocol):
    """Reals to reals, reversible up to its error.

    Attributes:
        text: its canonical text in a spec, for example ``subsample:0.0625``.
        unbiased: whether ``E[inverse(forward(v))] = v`` over its own randomness, for every ``v``.
        composes_with_secagg: whether sums of what it makes, under one public seed, are what it makes of sums.
    """

    text: str
    unbiased: bool
    composes_with_secagg: bool

    def shape(self, shape: Shape) -> Shape:
        """Return the shape of what :meth:`forward` makes of values of this shape."""
        ...

    def max_side_bytes(self, shape: Shape) -> int:
        """Return the most bytes that must travel besides the values."""
        ...

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Return the transformed values, and what must travel besides them. ``values`` are not changed."""
        ...

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Return values of ``shape``. Raises UpdateFormatError where ``side`` cannot be of this transform."""
        ...


class Coder(Protocol):
    """Reals to bytes and back. ``text`` and the two promises are as in :class:`Transform`."""

    text: str
    unbiased: bool
    composes_with_secagg: bool

    def max_bytes(self, shape: Shape) -> int:
        """Return the longest payload for values of this shape."""
        ...

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Return the bytes that travel. ``values`` are not changed."""
        ...

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Return values of ``shape``. Raises UpdateFormatError where the payload cannot be of this coder."""
        ...


def tiles(shape: Shape) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of pieces of at most about :data:`CHUNK_VALUES` values, in order."""
    rows, width = shape
    if width <= CHUNK_VALUES:
        step = CHUNK_VALUES // width
        for i in range(0, rows, step):
            yield slice(i, min(i + step, rows)), slice(0, width)
        return
    for i in range(rows):
        for j in range(0, width, CHUNK_VALUES):
            yield slice(i, i + 1), slice(j, min(j + CHUNK_VALUES, width))


def uniforms(private: PrivateRandomness, shape: Shape) -> Reals:
    """Return private uniform draws from [0, 1), multiples of ``2**-24``: exact in float32, never 1."""
    raw = np.frombuffer(private.take(4 * shape[0] * shape[1]), "<u4").reshape(shape)
    return (raw >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
