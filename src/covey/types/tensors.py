"""Named tensors and their one canonical byte order.

Wherever Covey lays tensors side by side (a checkpoint, an update's body, a segment) the order is the same: sorted by
name, each in C order, little-endian, nothing between them. Names are ``/``-joined paths of the author's tree.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import LayoutError

__all__ = [
    "Array",
    "DTYPES",
    "TensorSpec",
    "Tensors",
    "flatten_tensors",
    "pack_tensors",
    "packed_num_bytes",
    "sha256_hex",
    "specs_of",
    "unflatten_tensors",
    "unpack_tensors",
]

Array = NDArray[np.generic]
Tensors = Mapping[str, Array]

DTYPES = ("bool", "float32", "float64", "int32", "int64", "uint8", "uint32")
"""The dtypes that may cross the wire, by NumPy name."""


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """The name, shape and dtype of one tensor; ``dtype`` is one of :data:`DTYPES`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES or any(d < 0 for d in self.shape):
            raise LayoutError(
                f"tensor {self.name!r}",
                expected=f"a dtype among {', '.join(DTYPES)} and dimensions >= 0",
                got=f"{self.dtype} {list(self.shape)}",
            )

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Number of bytes in the canonical layout."""
        return self.size * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The little-endian NumPy dtype."""
        return np.dtype(self.dtype).newbyteorder("<")


def sha256_hex(data: bytes | bytearray | memoryview) -> str:
    """Return the name under which ``data`` is addressed: its SHA-256, 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def specs_of(tensors: Tensors) -> tuple[TensorSpec, ...]:
    """Return the specs of ``tensors`` in canonical order."""
    return tuple(TensorSpec(k, tuple(tensors[k].shape), tensors[k].dtype.name) for k in sorted(tensors))


def packed_num_bytes(specs: Iterable[TensorSpec]) -> int:
    """Return how many bytes tensors of these specs take when packed."""
    return sum(s.num_bytes for s in specs)


def pack_tensors(tensors: Tensors, specs: Sequence[TensorSpec] | None = None) -> bytes:
    """Lay ``tensors`` side by side in canonical order.

    Args:
        tensors: name -> array.
        specs: what they must be; their own specs when omitted.

    Raises:
        LayoutError: a name, shape or dtype differs from ``specs``.
    """
    specs = specs_of(tensors) if specs is None else specs
    _check(tensors, specs)
    return b"".join(np.ascontiguousarray(tensors[s.name], s.numpy_dtype).tobytes() for s in sorted(specs))


def unpack_tensors(specs: Sequence[TensorSpec], data: bytes | bytearray | memoryview) -> dict[str, Array]:
    """Return read-only views into ``data``, one for each spec. The inverse of :func:`pack_tensors`.

    Raises:
        LayoutError: ``data`` is not exactly as long as the specs need.
    """
    needed = packed_num_bytes(specs)
    if len(data) != needed:
        raise LayoutError("packed tensors", expected=f"{needed} bytes", got=f"{len(data)} bytes")
    out: dict[str, Array] = {}
    offset = 0
    for s in sorted(specs):
        view = np.frombuffer(data, s.numpy_dtype, count=s.size, offset=offset).reshape(s.shape)
        view.flags.writeable = False
        out[s.name] = view
        offset += s.num_bytes
    return out


def flatten_tensors(tensors: Tensors, specs: Sequence[TensorSpec]) -> NDArray[np.float32]:
    """Concatenate float tensors into one float32 vector in canonical order.

    Raises:
        LayoutError: a name, shape or dtype differs from ``specs``.
    """
    _check(tensors, specs)
    out = np.empty(sum(s.size for s in specs), np.float32)
    offset = 0
    for s in sorted(specs):
        out[offset : offset + s.size] = tensors[s.name].reshape(-1)
        offset += s.size
    return out


def unflatten_tensors(vector: Array, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Cut a vector back into tensors (views where the dtype allows). The inverse of :func:`flatten_tensors`.

    Raises:
        LayoutError: the vector's length is not the specs' total size.
    """
    total = sum(s.size for s in specs)
    if vector.shape != (total,):
        raise LayoutError("vector", expected=f"shape [{total}]", got=f"{list(vector.shape)}")
    out: dict[str, Array] = {}
    offset = 0
    for s in sorted(specs):
        out[s.name] = vector[offset : offset + s.size].reshape(s.shape).astype(s.numpy_dtype, copy=False)
        offset += s.size
    return out


def _check(tensors: Tensors, specs: Sequence[TensorSpec]) -> None:
    names = {s.name for s in specs}
    if names != set(tensors):
        odd = sorted(names ^ set(tensors))
        raise LayoutError(
            "tensors", expected=f"{len(names)} named tensors", got=f"a difference in {', '.join(odd[:5])}"
        )
    for s in specs:
        t = tensors[s.name]
        if tuple(t.shape) != s.shape or t.dtype != s.numpy_dtype:
            raise LayoutError(
                f"tensor {s.name!r}", expected=f"{s.dtype} {list(s.shape)}", got=f"{t.dtype.name} {list(t.shape)}"
            )
