"""Uniform quantization with entropy coding: equal steps, and as many bits as the result's entropy.

A step of t times the root mean square of the values. *Nearest* rounding with EDEN's correction of the scale (one S for
the vector) has, after a rotation, the smallest error at a size that Covey knows: 0.2 to 0.4 bits a coordinate less than
EDEN at 2 to 4 bits, and half of EDEN's error below half a bit, where a step of several root mean squares keeps only the
large coordinates. *Stochastic* rounding doubles the error and is unbiased for every vector. (Entropy-coded quantization
of updates: Suresh et al. 2017, 1611.00429, section 4; Mitchell et al. 2022, 2201.02664.)
"""

import struct

import numpy as np

from covey.compression.entropy import MAX_SYMBOL, decode_symbols, encode_symbols, max_symbol_bytes
from covey.compression.stage import PrivateRandomness, Reals, Shape, tiles, uniforms
from covey.types.errors import UpdateFormatError

__all__ = ["Uniform"]

_HEAD = struct.Struct("<f")
_WIDEST_STEP = 1.9
"""In units of the largest magnitude: a wider step would round everything to zero, and lose the update unseen."""


class Uniform:
    """``uniform:T`` (nearest) or ``uniform:T:stochastic``: steps of T root mean squares, entropy coded.

    Args:
        step: T, above 0.
        stochastic: whether rounding is private and unbiased.
    """

    composes_with_secagg = False

    def __init__(self, step: float, *, stochastic: bool = False) -> None:
        self.step = step
        self.stochastic = stochastic
        self.unbiased = stochastic
        self.text = f"uniform:{step:.6g}" + (":stochastic" if stochastic else "")

    def max_bytes(self, shape: Shape) -> int:
        """Return the longest payload: the entropy coder gives up at two bytes a coordinate."""
        return _HEAD.size + max_symbol_bytes(shape[0] * shape[1])

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Round and code."""
        flat = values.reshape(1, -1)
        square = float(np.vdot(flat, flat))
        largest = max(float(flat.max()), -float(flat.min()))
        step = max(self.step * (square / flat.size) ** 0.5, largest / (MAX_SYMBOL - 1))
        if not self.stochastic:
            step = min(step, _WIDEST_STEP * largest)
        symbols = np.zeros(flat.shape, np.int16)
        product = 0.0
        if step > 0:
            for some, columns in tiles(flat.shape):
                part = flat[some, columns]
                steps = part * np.float32(1 / step)
                if self.stochastic:
                    steps += uniforms(private, steps.shape)
                    np.floor(steps, out=steps)
                else:
                    np.rint(steps, out=steps)
                product += float(np.vdot(steps, part))
                symbols[some, columns] = steps
        scale = step if self.stochastic or product <= 0 else square / product
        return _HEAD.pack(scale) + encode_symbols(symbols.reshape(-1))

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Decode and scale."""
        if not _HEAD.size < len(payload) <= self.max_bytes(shape):
            raise UpdateFormatError("uniform", expected=f"at most {self.max_bytes(shape)} bytes", got=str(len(payload)))
        (scale,) = _HEAD.unpack(payload[: _HEAD.size])
        if not 0 <= scale < np.inf:
            raise UpdateFormatError("uniform", expected="a finite scale of at least 0", got="another")
        symbols = decode_symbols(payload[_HEAD.size :], shape[0] * shape[1])
        out: Reals = np.multiply(symbols, np.float32(scale), dtype=np.float32).reshape(shape)
        return out
