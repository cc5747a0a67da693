"""Planar bit packing: ``ring_bits`` bits a coordinate, no more, at the speed of copying.

A vector is cut into chunks of 65,536 coordinates. A chunk is stored as planes, one for each 1 in the binary form of
``ring_bits``, from the widest (the lowest bits of every coordinate) to the narrowest (the highest): 12 bits are a plane
of bytes and a plane of nibbles, 26 bits planes of 16, 8 and 2. Planes of 8 bits and more are little-endian words, one a
coordinate. In a narrower plane of ``w`` bits with ``r = 8 / w`` coordinates a byte and ``L = ceil(length / r)`` bytes,
byte ``j`` holds coordinates ``j, L + j, 2 L + j, ...`` from its lowest bits up, so that every shift works on a
contiguous run; bits that belong to no coordinate are zero, so a vector has one encoding. (Interleaved bits unpack four
times as slowly in NumPy.)
"""

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import SecAggMessageError

__all__ = [
    "CHUNK",
    "Bytes",
    "Words",
    "check_padding",
    "chunks",
    "pack",
    "packed_bytes",
    "unpack",
    "unpack_onto",
    "word_dtype",
]

CHUNK = 1 << 16
"""Coordinates that are masked, packed and folded at a time: 128 KiB of uint16, 256 KiB of uint32."""

Words = NDArray[np.unsignedinteger]
Bytes = NDArray[np.uint8]


def word_dtype(ring_bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the little-endian words in which a ring is computed: the narrowest of 16, 32 and 64 bits that holds it."""
    return np.dtype("<u2" if ring_bits <= 16 else "<u4" if ring_bits <= 32 else "<u8")


def packed_bytes(length: int, ring_bits: int) -> int:
    """Return the number of bytes of a packed vector."""
    full, rest = divmod(length, CHUNK)
    return full * CHUNK * ring_bits // 8 + _chunk_bytes(rest, ring_bits)


def chunks(length: int, ring_bits: int) -> Iterator[tuple[slice, slice]]:
    """Yield, chunk by chunk, which coordinates and which bytes of the packed vector belong together."""
    start = 0
    for i in range(0, length, CHUNK):
        count = min(CHUNK, length - i)
        end = start + _chunk_bytes(count, ring_bits)
        yield slice(i, i + count), slice(start, end)
        start = end


def pack(words: Words, ring_bits: int, out: Bytes) -> None:
    """Pack one chunk modulo ``2**ring_bits`` into ``out``, which is exactly as long as that takes."""
    shift = start = 0
    for width in _planes(ring_bits):
        end = start + _plane_bytes(len(words), width)
        plane: Words = np.right_shift(words, shift, dtype=words.dtype) if shift else words
        if width == 8 * words.itemsize:
            out[start:end] = plane.view(np.uint8)
        elif width >= 8:
            out[start:end].view(f"<u{width // 8}")[:] = plane
        else:
            _pack_narrow(plane, width, out[start:end])
        shift, start = shift + width, end


def unpack(data: Bytes, ring_bits: int, out: Words) -> Words:
    """Unpack one chunk into ``out``; its padding is taken to be zero (see :func:`check_padding`). Returns ``out``."""
    shift = start = 0
    for width in _planes(ring_bits):
        end = start + _plane_bytes(len(out), width)
        plane = data[start:end]
        if width == 8 * out.itemsize:
            out.view(np.uint8)[:] = plane
        elif width >= 8:
            wide = plane.view(f"<u{width // 8}")
            if shift:
                out |= np.left_shift(wide, shift, dtype=out.dtype)
            else:
                out[:] = wide
        else:
            _unpack_narrow(plane, width, shift, out)
        shift, start = shift + width, end
    return out


def unpack_onto(total: Words, data: Bytes, ring_bits: int, scratch: Bytes) -> None:
    """Unpack one chunk and add it to ``total``; ``scratch`` holds at least as many bytes."""
    if ring_bits == 8 * total.itemsize:
        total += data.view(total.dtype)  # the packed chunk is the words themselves
    else:
        total += unpack(data, ring_bits, scratch[: total.nbytes].view(total.dtype))


def check_padding(data: Bytes, length: int, ring_bits: int) -> None:
    """Raise unless the bits of a packed vector that belong to no coordinate are zero.

    Raises:
        SecAggMessageError: another encoding of the same vector.
    """
    rest = length % CHUNK  # full chunks have no padding: 65,536 is a multiple of 8
    start = len(data) - _chunk_bytes(rest, ring_bits)
    for width in _planes(ring_bits):
        size = _plane_bytes(rest, width)
        plane = data[start : start + size]
        start += size
        for i in range(8 // width if width < 8 else 0):
            unused = plane[max(0, min(size, rest - i * size)) :]
            if np.any(unused >> (i * width) & ((1 << width) - 1)):
                raise SecAggMessageError("packed vector", expected="zeros in the padding", got="ones")


@functools.cache
def _planes(ring_bits: int) -> tuple[int, ...]:
    return tuple(w for w in (64, 32, 16, 8, 4, 2, 1) if ring_bits & w)


def _plane_bytes(count: int, width: int) -> int:
    return -(-count * width // 8)


def _chunk_bytes(count: int, ring_bits: int) -> int:
    return sum(_plane_bytes(count, w) for w in _planes(ring_bits))


def _pack_narrow(plane: Words, width: int, out: Bytes) -> None:
    size, low = len(out), (1 << width) - 1
    out[:] = 0
    for i in range(8 // width):
        part = plane[i * size : (i + 1) * size].astype(np.uint8) & low
        out[: len(part)] |= part << (i * width)


def _unpack_narrow(plane: Bytes, width: int, shift: int, out: Words) -> None:
    size, low = len(plane), (1 << width) - 1
    for i in range(8 // width):
        part = out[i * size : (i + 1) * size]
        if len(part):
            part |= np.left_shift(plane[: len(part)] >> (i * width) & low, shift, dtype=out.dtype)
