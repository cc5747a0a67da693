"""The binary body of a report: named parts, each an encoded segment, with every length checked before it is read.

Layout, little-endian::

    4 bytes  magic "CVYU"      2 bytes  version = 2      2 bytes  number of parts
    for each part: 2 bytes length of name, name (UTF-8), 8 bytes length of payload
    then the payloads, in the same order
    4 bytes  CRC-32 of everything before it, and nothing after it

The CRC shows damage before anything is decoded: a flipped bit of a float32 is as finite as the right one.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence

from covey.types.errors import UpdateFormatError, VersionError

__all__ = ["UPDATE_VERSION", "decode_update", "encode_update", "max_update_bytes", "part_sizes"]

UPDATE_VERSION = 2
_MAGIC = b"CVYU"
_HEAD = struct.Struct("<4sHH")
_NAME = struct.Struct("<H")
_SIZE = struct.Struct("<Q")
_CRC = struct.Struct("<I")


def encode_update(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """Frame ``(name, payload)`` pairs in order."""
    out = [_HEAD.pack(_MAGIC, UPDATE_VERSION, len(parts))]
    for name, payload in parts:
        raw = name.encode()
        out += [_NAME.pack(len(raw)), raw, _SIZE.pack(len(payload))]
    out += [payload for _, payload in parts]
    crc = 0
    for piece in out:
        crc = zlib.crc32(piece, crc)
    return b"".join([*out, _CRC.pack(crc)])


def max_update_bytes(limits: Mapping[str, int]) -> int:
    """Return the largest body that :func:`decode_update` accepts for these limits: what a server need ever read."""
    return _HEAD.size + sum(_NAME.size + len(k.encode()) + _SIZE.size + v for k, v in limits.items()) + _CRC.size


def part_sizes(body: bytes) -> dict[str, int]:
    """Return the bytes of each part of a body that this process made itself: nothing is checked, no payload is read."""
    _, _, num_parts = _HEAD.unpack_from(body)
    offset, sizes = _HEAD.size, {}
    for _ in range(num_parts):
        start = offset + _NAME.size
        offset = start + _NAME.unpack_from(body, offset)[0]
        (sizes[body[start:offset].decode()],) = _SIZE.unpack_from(body, offset)
        offset += _SIZE.size
    return sizes


def decode_update(body: bytes | bytearray | memoryview, limits: Mapping[str, int]) -> dict[str, memoryview]:
    """Cut a body into its parts (views, no copies).

    Args:
        body: the whole body.
        limits: the expected names, in order, and the most bytes that each payload may take.

    Raises:
        UpdateFormatError: truncated, trailing or damaged bytes, other names, or a payload above its limit.
        VersionError: framed by another version.
    """
    view = memoryview(body)
    magic, version, num_parts = _HEAD.unpack(_take(view, 0, _HEAD.size, "head"))
    if magic != _MAGIC:
        raise UpdateFormatError("update", expected="an update body", got="another first four bytes")
    if version != UPDATE_VERSION:
        raise VersionError("update", expected=f"version {UPDATE_VERSION}", got=str(version), hint="upgrade")
    if num_parts != len(limits):
        raise UpdateFormatError("update", expected=f"{len(limits)} parts", got=str(num_parts))
    offset, sizes = _HEAD.size, []
    for name, limit in limits.items():
        (length,) = _NAME.unpack(_take(view, offset, _NAME.size, "name"))
        offset += _NAME.size
        if bytes(_take(view, offset, length, "name")) != name.encode():
            raise UpdateFormatError("update", expected=f"part {name!r}", got="another name")
        offset += length
        (size,) = _SIZE.unpack(_take(view, offset, _SIZE.size, name))
        offset += _SIZE.size
        if size > limit:
            raise UpdateFormatError(f"update: {name}", expected=f"at most {limit} bytes", got=str(size))
        sizes.append(size)
    parts = {}
    for name, size in zip(limits, sizes, strict=True):
        parts[name] = _take(view, offset, size, name)
        offset += size
    (crc,) = _CRC.unpack(_take(view, offset, _CRC.size, "checksum"))
    if offset + _CRC.size != len(view):
        raise UpdateFormatError("update", expected=f"{offset + _CRC.size} bytes", got=f"{len(view)} bytes")
    if crc != zlib.crc32(view[:offset]):
        raise UpdateFormatError("update", expected="bytes as they were sent", got="another checksum", hint="damaged")
    return parts


def _take(view: memoryview, offset: int, length: int, what: str) -> memoryview:
    if offset + length > len(view):
        raise UpdateFormatError(
            f"update: {what}", expected=f"{offset + length} bytes or more", got=f"{len(view)} bytes", hint="truncated"
        )
    return view[offset : offset + length]
