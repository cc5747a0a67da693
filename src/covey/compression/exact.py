"""No compression: the values as they are, little-endian. ``float32`` is the baseline of every figure."""

import numpy as np
from numpy.typing import NDArray

from covey.compression.stage import PrivateRandomness, Shape
from covey.types.errors import UpdateFormatError

__all__ = ["Exact"]


class Exact:
    """``float32``, or ``float64`` for the header, whose metric sums float32 would round."""

    unbiased = True
    composes_with_secagg = False

    def __init__(self, text: str) -> None:
        self.text = text
        self._dtype = np.dtype({"float32": "<f4", "float64": "<f8"}[text])

    def max_bytes(self, shape: Shape) -> int:
        """Return the exact size."""
        return self._dtype.itemsize * shape[0] * shape[1]

    def encode(self, values: NDArray[np.floating], seed: bytes, private: PrivateRandomness) -> bytes:
        """Return the values' bytes."""
        return values.astype(self._dtype, copy=False).tobytes()

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> NDArray[np.floating]:
        """Return a read-only view of the payload."""
        if len(payload) != self.max_bytes(shape):
            raise UpdateFormatError(self.text, expected=f"{self.max_bytes(shape)} bytes", got=str(len(payload)))
        return np.frombuffer(payload, self._dtype).reshape(shape)
