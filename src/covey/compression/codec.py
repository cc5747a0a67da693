"""The codec of a segment on the plain path, and the registry that plans name them from."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import PlanFormatError, UpdateFormatError

__all__ = ["Codec", "Float32", "Float64", "codec_named"]


class Codec(Protocol):
    """Encode a vector of reals for one session, and decode it on the other side.

    Laws: ``decode(encode(v), len(v))`` has the length of ``v``; ``len(encode(v)) <= max_bytes(len(v))``; ``unbiased``
    and ``composes_with_secagg`` are true only where that is proved.
    """

    name: str
    unbiased: bool
    composes_with_secagg: bool

    def encode(self, values: NDArray[np.floating]) -> bytes:
        """Return the bytes that travel."""
        ...

    def decode(self, payload: bytes | memoryview, length: int) -> NDArray[np.floating]:
        """Return ``length`` values. Raises UpdateFormatError for a payload of another size."""
        ...

    def max_bytes(self, length: int) -> int:
        """Return the longest payload for ``length`` values."""
        ...


class Float32:
    """No compression: four bytes a coordinate, little-endian. The baseline of every figure."""

    name = "float32"
    unbiased = True
    composes_with_secagg = False

    def encode(self, values: NDArray[np.floating]) -> bytes:
        """Return the values' bytes."""
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes | memoryview, length: int) -> NDArray[np.floating]:
        """Return a read-only view of the payload."""
        if len(payload) != 4 * length:
            raise UpdateFormatError("float32 payload", expected=f"{4 * length} bytes", got=f"{len(payload)} bytes")
        return np.frombuffer(payload, "<f4")

    def max_bytes(self, length: int) -> int:
        """Return ``4 * length``."""
        return 4 * length


class Float64:
    """Eight bytes a coordinate, little-endian: for the header, whose metric sums float32 would round."""

    name = "float64"
    unbiased = True
    composes_with_secagg = False

    def encode(self, values: NDArray[np.floating]) -> bytes:
        """Return the values' bytes."""
        return values.astype("<f8", copy=False).tobytes()

    def decode(self, payload: bytes | memoryview, length: int) -> NDArray[np.floating]:
        """Return a read-only view of the payload."""
        if len(payload) != 8 * length:
            raise UpdateFormatError("float64 payload", expected=f"{8 * length} bytes", got=f"{len(payload)} bytes")
        return np.frombuffer(payload, "<f8")

    def max_bytes(self, length: int) -> int:
        """Return ``8 * length``."""
        return 8 * length


_CODECS: dict[str, Codec] = {"float32": Float32(), "float64": Float64()}


def codec_named(name: str) -> Codec:
    """Return the codec that a plan names.

    Raises:
        PlanFormatError: this version has no such codec.
    """
    if name not in _CODECS:
        raise PlanFormatError("codec", expected=f"one of {', '.join(_CODECS)}", got=name, hint="upgrade Covey")
    return _CODECS[name]
