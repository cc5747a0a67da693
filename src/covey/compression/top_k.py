"""Top-k: send the largest coordinates. A baseline: biased for every vector, and what is small is never sent.

(Aji & Heafield 2017, "Sparse communication for distributed gradient descent"; there the rest is remembered for the next
step, which a device that takes part once cannot do.) Positions travel as Rice-coded gaps.
"""

import math
import struct

import numpy as np
from numpy.typing import NDArray

from covey.compression.packing import pack, packed_bytes, unpack
from covey.compression.stage import Reals, Shape
from covey.compression.subsampling import kept_per_row
from covey.types.errors import UpdateFormatError

__all__ = ["TopK"]

_HEAD = struct.Struct("<I")


class TopK:
    """``topk:F``: send the fraction F of the coordinates with the largest magnitudes, of the whole vector.

    Args:
        keep: F, above 0 and at most 1.
    """

    unbiased = False
    composes_with_secagg = False

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.text = f"topk:{keep:.6g}"

    def shape(self, shape: Shape) -> Shape:
        """Return ``[1, kept]``."""
        return 1, kept_per_row(shape[0] * shape[1], self.keep)

    def max_side_bytes(self, shape: Shape) -> int:
        """Return the longest code of the positions."""
        length = shape[0] * shape[1]
        kept = kept_per_row(length, self.keep)
        bits = _remainder_bits(length, kept)
        # Quotients add up to at most length / 2**bits, in unary with one stop bit each.
        return _HEAD.size + packed_bytes(kept, bits) + -(-(kept + (length >> bits)) // 8)

    def forward(self, values: Reals, seed: bytes) -> tuple[Reals, bytes]:
        """Pick; equal magnitudes are taken in no particular order."""
        flat = values.reshape(-1)
        kept = kept_per_row(flat.size, self.keep)
        at = np.arange(flat.size)
        if kept < flat.size:
            at = np.sort(np.argpartition(np.abs(flat), flat.size - kept)[flat.size - kept :])
        return flat[at].reshape(1, -1), _encode_positions(at, flat.size)

    def inverse(self, values: Reals, side: bytes, shape: Shape, seed: bytes) -> Reals:
        """Put back; what was not sent is zero."""
        out = np.zeros(shape, np.float32)
        out.reshape(-1)[_decode_positions(side, values.size, out.size)] = values.reshape(-1)
        return out


def _remainder_bits(length: int, kept: int) -> int:
    """Return Rice's parameter: the logarithm of ln 2 times the mean gap, which is best for geometric gaps."""
    return max(0, math.ceil(math.log2(max(1.0, 0.69 * length / kept))))


def _encode_positions(at: NDArray[np.int64], length: int) -> bytes:
    bits = _remainder_bits(length, len(at))
    gaps = np.diff(at, prepend=-1) - 1
    quotients = gaps >> bits
    stops = np.cumsum(quotients + 1) - 1
    unary = np.zeros(int(stops[-1]) + 1, np.uint8)
    unary[stops] = 1
    remainders = pack((gaps & ((1 << bits) - 1)).astype(np.uint32), bits) if bits else b""
    return _HEAD.pack(len(unary)) + remainders + np.packbits(unary).tobytes()


def _decode_positions(side: bytes, kept: int, length: int) -> NDArray[np.int64]:
    bits = _remainder_bits(length, kept)
    size = packed_bytes(kept, bits) if bits else 0
    wrong = UpdateFormatError("topk", expected=f"{kept} positions below {length}", got="others")
    if len(side) < _HEAD.size + size:
        raise wrong
    (num_unary,) = _HEAD.unpack(side[: _HEAD.size])
    unary = np.frombuffer(side, np.uint8, offset=_HEAD.size + size)
    if len(unary) != -(-num_unary // 8):
        raise wrong
    stops = np.flatnonzero(np.unpackbits(unary)[:num_unary])
    if len(stops) != kept or stops[-1] != num_unary - 1:
        raise wrong
    gaps = (np.diff(stops, prepend=-1) - 1) << bits
    if bits:
        gaps = gaps + unpack(side[_HEAD.size : _HEAD.size + size], kept, bits).astype(np.int64)
    at: NDArray[np.int64] = np.cumsum(gaps + 1) - 1
    if at[-1] >= length:
        raise wrong
    return at
