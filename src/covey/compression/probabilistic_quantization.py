"""Probabilistic quantization: round to one of two neighbouring levels so that the mean is right.

1610.05492, section 3, "probabilistic quantization". The levels of a row are ``2**b`` equally spaced values from its
smallest to its largest coordinate: ``2**b - 1`` intervals, as the paper's one-bit case has it and not the ``2**b`` of
its text, which would not fit b bits. Unbiased for every vector; the error is that of the range, which is what a
rotation before it makes small.
"""

import numpy as np

from covey.compression.packing import pack, packed_bytes, unpack
from covey.compression.stage import PrivateRandomness, Reals, Shape, tiles, uniforms
from covey.types.errors import UpdateFormatError

__all__ = ["Quantize"]


class Quantize:
    """``quantize:B``: B bits a coordinate, 1 to 8. Rounding is private.

    The draws are multiples of ``2**-24``, so that the mean is right to ``2**-24`` of an interval.
    """

    unbiased = True
    composes_with_secagg = False

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.text = f"quantize:{bits}"

    def max_bytes(self, shape: Shape) -> int:
        """Return the exact size: smallest value and interval for each row, then the codes."""
        return 8 * shape[0] + packed_bytes(shape[0] * shape[1], self.bits)

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Round."""
        top = (1 << self.bits) - 1
        low = values.min(axis=1)
        interval = (values.max(axis=1) - low) / np.float32(top)
        per_interval = np.divide(np.float32(1), interval, out=np.zeros_like(interval), where=interval > 0)
        codes = np.empty(values.shape, np.uint8)
        for some, columns in tiles(values.shape):
            steps = (values[some, columns] - low[some, None]) * per_interval[some, None]
            steps += uniforms(private, steps.shape)
            codes[some, columns] = np.minimum(steps, top)  # the cast is the floor: nothing is negative
        head = np.stack([low, interval], axis=1).astype("<f4", copy=False)
        return head.tobytes() + pack(codes.reshape(-1), self.bits)

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Return the levels."""
        if len(payload) != self.max_bytes(shape):
            raise UpdateFormatError("quantize", expected=f"{self.max_bytes(shape)} bytes", got=str(len(payload)))
        rows, width = shape
        head = np.frombuffer(payload, "<f4", count=2 * rows).reshape(rows, 2)
        if not (np.isfinite(head).all() and (head[:, 1] >= 0).all()):
            raise UpdateFormatError("quantize", expected="finite ranges", got="others")
        out = np.empty(shape, np.float32)
        codes = unpack(payload[8 * rows :], rows * width, self.bits).reshape(shape)
        for some, columns in tiles(shape):
            np.multiply(codes[some, columns], head[some, 1:], out=out[some, columns], dtype=np.float32)
            out[some, columns] += head[some, :1]
        return out
