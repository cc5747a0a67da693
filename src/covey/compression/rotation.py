"""Structured random rotation: a Hadamard matrix times random signs.

1610.05492, section 3, "improving the quantization by structured random rotations": ``z = H D x`` with D a diagonal of
public random signs and H the Walsh-Hadamard matrix over ``sqrt(width)``: orthogonal, and its own inverse up to D. It
spreads every coordinate over all others, so that afterwards the values look like independent Gaussians of one scale,
whatever the update looked like.

Deviation from the paper, which pads to the next power of two: the vector is cut into equal blocks, each rotated by
itself, because ``2**k + 1`` parameters must not become ``2**(k + 1)``. A block has at most 2^14 values, so that H is a
product of two matrices of at most 128 x 128 and a block's rotation two matrix products, ten times faster in NumPy than
the textbook's radix-2 butterflies.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from covey.compression.public_randomness import expand_signs, sign_bytes
from covey.compression.stage import CHUNK_VALUES, Reals, Shape
from covey.types.errors import UpdateFormatError

__all__ = ["Rotation", "block_width", "hadamard"]

_MAX_LOG_WIDTH = 14
_MIN_LOG_WIDTH = 5
_SCALE_BITS = 32
_PADDING_BITS = 2


def block_width(length: int) -> int:
    """Return the width of a block: the power of two that costs the fewest bits.

    Widths are 2^5 to 2^14, and at most the next power of two for shorter vectors. The cost of a width is a 32-bit scale
    for each block and 2 bits for each value of padding; of equals the wider wins.
    """
    longest = max(0, (length - 1).bit_length())
    widths = [1 << k for k in range(min(_MIN_LOG_WIDTH, longest), min(_MAX_LOG_WIDTH, longest) + 1)]

    def cost(width: int) -> int:
        blocks = -(-length // width)
        return blocks * _SCALE_BITS + (blocks * width - length) * _PADDING_BITS

    return min(reversed(widths), key=cost)


@cache
def hadamard(size: int) -> Reals:
    """Return the Walsh-Hadamard matrix over ``sqrt(size)``, ``size`` a power of two; read-only."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    out = np.asarray(matrix / np.sqrt(np.float32(size)), np.float32)
    out.flags.writeable = False
    return out


def _rotate(blocks: Reals, out: Reals) -> None:
    """Multiply each row by H: as ``H_a X H_b``, X the row as a matrix, for H is the Kronecker product of the two."""
    width = blocks.shape[1]
    left = hadamard(1 << (width.bit_length() // 2))
    right = hadamard(width // len(left))
    half = np.empty((len(left), len(right)), np.float32)
    for block, target in zip(blocks, out, strict=True):
        np.matmul(left, block.reshape(half.shape), out=half)
        np.matmul(half, right, out=target.reshape(half.shape))


class Rotation:
    """``hd``: block-wise randomised Hadamard rotation. Lossless but for rounding; sums rotate like their parts.

    Args:
        interleaved: whether block i takes every n-th value, beginning with the i-th, instead of a run of neighbours.
            All blocks then have about the same energy, which one shared scale needs (the secure path); on the plain
            path every block has its own scale, and runs keep layers apart.
    """

    unbiased = True
    composes_with_secagg = True

    def __init__(self, *, interleaved: bool = False) -> None:
        self.interleaved = interleaved
        self.text = "hd:interleaved" if interleaved else "hd"

    def shape(self, shape: Shape) -> Shape:
        """Return ``[blocks, width]``."""
        length = shape[0] * shape[1]
        width = block_width(length)
        return -(-length // width), width

    def max_side_bytes(self, shape: Shape) -> int:
        """Return 0."""
        return 0

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Rotate. One copy of the vector is made, and scratch of one chunk."""
        flat = values.reshape(-1)
        rows, width = self.shape((1, flat.size))
        packed = sign_bytes(seed, "hd", width * rows)
        out = np.empty((rows, width), np.float32)
        for some in _runs(rows, width):
            chunk = self._gathered(flat, rows, width, some)
            chunk *= _flips(packed, some, width)
            _rotate(chunk, out[some])
        return out, b""

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Rotate back: H is its own inverse, and so are signs."""
        if len(side):
            raise UpdateFormatError("hd", expected="nothing beside the values", got=f"{len(side)} bytes")
        rows, width = values.shape
        packed = sign_bytes(seed, "hd", width * rows)
        out = np.empty((rows, width), np.float32)
        for some in _runs(rows, width):
            _rotate(values[some], out[some])
            out[some] *= _flips(packed, some, width)
        flat = out.T.reshape(-1) if self.interleaved else out.reshape(-1)
        return flat[: shape[0] * shape[1]].reshape(shape)

    def _gathered(self, flat: Reals, rows: int, width: int, some: slice) -> Reals:
        """Return some blocks, zeros where the vector has ended."""
        chunk = np.zeros((some.stop - some.start, width), np.float32)
        if self.interleaved:
            for i in range(some.start, some.stop):
                part = flat[i::rows]
                chunk[i - some.start, : len(part)] = part
        else:
            part = flat[some.start * width : some.stop * width]
            chunk.reshape(-1)[: len(part)] = part
        return chunk


def _runs(rows: int, width: int) -> Iterator[slice]:
    """Yield the rows in runs of about a chunk's size."""
    step = max(1, CHUNK_VALUES // width)
    for i in range(0, rows, step):
        yield slice(i, min(i + step, rows))


def _flips(packed: NDArray[np.uint8], some: slice, width: int) -> Reals:
    """Return the signs of some rows. A width that is no multiple of 8 has one row only: nothing is shared by two."""
    count = (some.stop - some.start) * width
    start = some.start * width // 8
    return expand_signs(packed[start : start + -(-count // 8)])[:count].reshape(-1, width)
