"""Planar bit-packing: unsigned codes of b bits in ``8 * ceil(b * n / 8)`` bits or a few more.

A code is cut into planes of 8, 4, 2 and 1 bits, from its lowest bits up, each plane stored as a whole: a byte plane as
it is, an n-nibble plane as ``low half | high half << 4``, where the halves are the plane's first and second half, and
so on. Neighbours never share a byte, so that packing is a few passes of whole-array shifts: interleaved packing is four
times slower in NumPy.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import UpdateFormatError

__all__ = ["pack", "packed_bytes", "unpack"]

Codes = NDArray[np.unsignedinteger]


def _planes(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (shift, width) of the planes of a code of ``bits`` bits."""
    shift = 0
    for width in (8, 8, 8, 8, 4, 2, 1):
        if bits - shift >= width:
            yield shift, width
            shift += width


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes ``count`` codes of ``bits`` bits take."""
    return sum(-(-count // (8 // width)) for _, width in _planes(bits))


def pack(codes: Codes, bits: int) -> bytes:
    """Pack codes below ``2**bits``; ``bits`` is 1 to 32."""
    out = []
    for shift, width in _planes(bits):
        plane = codes if shift == 0 and codes.dtype == np.uint8 else (codes >> codes.dtype.type(shift)).astype(np.uint8)
        if shift + width < bits or width == 8:
            plane = plane & np.uint8((1 << width) - 1) if width < 8 else plane
        out.append(_pack_plane(plane, width))
    return b"".join(out)


def unpack(data: memoryview | bytes, count: int, bits: int) -> Codes:
    """Return ``count`` codes: uint8 up to 8 bits, else uint16 or uint32. The inverse of :func:`pack`.

    Raises:
        UpdateFormatError: not exactly as many bytes as that takes.
    """
    if len(data) != packed_bytes(count, bits):
        raise UpdateFormatError("packed codes", expected=f"{packed_bytes(count, bits)} bytes", got=str(len(data)))
    dtype: type[np.unsignedinteger] = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    codes: Codes | None = None
    offset = 0
    for shift, width in _planes(bits):
        size = -(-count // (8 // width))
        plane = _unpack_plane(np.frombuffer(data, np.uint8, count=size, offset=offset), count, width)
        offset += size
        if codes is None:
            codes = plane.astype(dtype)
        else:
            codes |= plane.astype(dtype) << dtype(shift)
    assert codes is not None, "a code has at least one bit"
    return codes


def _pack_plane(plane: NDArray[np.uint8], width: int) -> bytes:
    per_byte = 8 // width
    size = -(-len(plane) // per_byte)
    out = plane[:size].copy()
    for i in range(1, per_byte):
        part = plane[i * size : (i + 1) * size]
        out[: len(part)] |= part << np.uint8(i * width)
    return out.tobytes()


def _unpack_plane(data: NDArray[np.uint8], count: int, width: int) -> NDArray[np.uint8]:
    per_byte = 8 // width
    out = np.empty(count, np.uint8)
    for i in range(per_byte):
        part = out[i * len(data) : (i + 1) * len(data)]
        np.right_shift(data[: len(part)], np.uint8(i * width), out=part)
    if width < 8:
        out &= np.uint8((1 << width) - 1)
    return out
