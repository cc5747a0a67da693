"""A spec's pipeline, behind ``encode`` and ``decode``, in an envelope that shows any damage.

A payload, little-endian::

    1 byte   version = 1
    2 bytes  exponent e, signed: the values were multiplied by 2^-e first (0 unless they are extreme)
    4 bytes  the first of derive_seed(seed, "codec", spec, length): another spec, seed or length is seen before decoding
    4 bytes  CRC-32 of all other bytes, those before it and those after
    for each transform that has something to say beside the values: 4 bytes length, bytes
    then the coder's bytes, and nothing after them

``float32`` and ``float64`` alone travel bare: the values and nothing else, whose damage the frame around them shows
(:mod:`covey.wire.framing`).

The CRC finds damage, not malice: TLS and the session's credential keep others out, and a device that lies can do so
with a valid CRC as well. What a liar sends is still checked for size, finiteness and range before it is folded.
"""

import math
import struct
import zlib
from typing import final

import numpy as np
from numpy.typing import NDArray

from covey.compression.exact import Exact
from covey.compression.ring_coder import Residues, Ring
from covey.compression.secure import Projection, SecurePath, centred
from covey.compression.stage import Coder, PrivateRandomness, Shape, Transform
from covey.compression.structured_updates import LowRank, RandomMask
from covey.compression.top_k import TopK
from covey.compression.uniform_quantization import Uniform
from covey.types.errors import LayoutError, UpdateFormatError, UpdateNotFiniteError, VersionError
from covey.types.rng import derive_seed
from covey.types.segments import Segment

__all__ = ["PAYLOAD_VERSION", "Codec"]

PAYLOAD_VERSION = 1
_HEAD = struct.Struct("<BhI")
_CRC = struct.Struct("<I")
_SIDE = struct.Struct("<I")
_ENVELOPE = _HEAD.size + _CRC.size
_USUAL = 40
"""Magnitudes from 2^-40 to 2^40 are left alone: squares, and sums of 2^26 of them, are far from float32's limits."""


@final
class Codec:
    """A pipeline. Make one with :func:`covey.compression.codec.codec_named`; it holds no state and may be shared.

    A codec of values alone (``float32``) has no envelope, and its damage is only seen where it changes the length.

    Laws: ``decode(encode(v, s, r), len(v), s)`` has the length of ``v``; ``len(encode(v, s, r)) <= max_bytes(len(v))``;
    a zero vector comes back as zeros; a payload in an envelope that was changed in any bit, cut short or made longer,
    or that is for another spec, seed or length, raises and gives nothing.

    Attributes:
        text: the spec in canonical form.
        unbiased: whether every stage is: the mean of many decodings is the update, whatever the update.
        composes_with_secagg: whether sums may be taken of what is sent; such a codec needs one seed for the round.
        structure: the structured update to train in place, or None.
        ring: the secure path's coder, or None.
        has_fixed_size: whether every payload has exactly :meth:`max_bytes`; not where positions or symbols are coded.
    """

    def __init__(self, transforms: tuple[Transform, ...], coder: Coder) -> None:
        self._transforms = transforms
        self._coder = coder
        stages: list[Transform | Coder] = [*transforms, coder]
        self.text = "|".join(s.text for s in stages)
        self.unbiased = all(s.unbiased for s in stages)
        self.composes_with_secagg = all(s.composes_with_secagg for s in stages)
        self.structure = next((t for t in transforms if isinstance(t, RandomMask | LowRank)), None)
        self.ring = coder if isinstance(coder, Ring) else None
        self.has_fixed_size = not any(isinstance(s, Uniform | TopK) for s in stages)
        self._is_exact = isinstance(coder, Exact)
        self._is_bare = self._is_exact and not transforms
        self._rescales = not isinstance(coder, Exact | Ring | Residues)  # a ring's step is absolute, and it clamps

    def encode(self, values: NDArray[np.floating], public_seed: bytes, private: PrivateRandomness) -> bytes:
        """Return the bytes that travel.

        Memory besides ``values``, payload included: at most 7 bytes a value for ``eden`` and ``quantize`` after ``hd``
        (and ``subsample`` up to an eighth), 20 for ``uniform``, 40 for any other spec, and a few megabytes of scratch.

        Args:
            values: one segment, ``[length]``; not changed.
            public_seed: 32 bytes that the other side derives as well: see :func:`segment_seed`.
            private: this device's own randomness, for rounding.

        Raises:
            LayoutError: no values.
            UpdateNotFiniteError: a NaN or an infinity.
        """
        if values.ndim != 1 or not values.size:
            raise LayoutError("update", expected="a vector of at least one value", got=f"shape {list(values.shape)}")
        largest = max(float(values.max()), -float(values.min()))
        if not math.isfinite(largest):
            raise UpdateNotFiniteError("update", expected="finite values", got="a NaN or an infinity")
        if self._is_bare:
            return self._coder.encode(values.reshape(1, -1), public_seed, private)
        exponent = self._exponent(largest)
        flow: NDArray[np.floating] = values.reshape(1, -1)
        if not self._is_exact:
            flow = np.ldexp(flow, -exponent).astype(np.float32) if exponent else flow.astype(np.float32, copy=False)
        sides = []
        for transform in self._transforms:
            shape = _shape_of(flow)
            flow, side = transform.forward(flow, public_seed)
            if transform.max_side_bytes(shape):
                sides += [_SIDE.pack(len(side)), side]
        body = b"".join([*sides, self._coder.encode(flow, public_seed, private)])
        head = _HEAD.pack(PAYLOAD_VERSION, exponent, self._tag(public_seed, values.size))
        return b"".join([head, _CRC.pack(zlib.crc32(body, zlib.crc32(head))), body])

    def decode(self, payload: bytes | bytearray | memoryview, length: int, public_seed: bytes) -> NDArray[np.floating]:
        """Return ``length`` values, float32 (float64 where the spec says so); finite, unless the codec is bare.

        Memory besides the payload, result included: at most 9 bytes a value for ``eden``, ``quantize`` and ``uniform``
        after ``hd`` (and ``subsample`` up to an eighth), 45 for any other spec.

        Raises:
            UpdateFormatError: damaged, or of another spec, seed or length.
            VersionError: of another version of this format.
            UpdateNotFiniteError: values that no float32 holds.
            UpdateRangeError: integers outside the bound of a ring.
        """
        view = memoryview(payload)
        if self._is_bare:
            return self._coder.decode(view, (1, length), public_seed).reshape(-1)
        if not _ENVELOPE <= len(view) <= self.max_bytes(length):
            raise UpdateFormatError(
                f"payload {self.text!r}",
                expected=f"{_ENVELOPE} to {self.max_bytes(length)} bytes",
                got=str(len(view)),
            )
        exponent, body = self._opened(view, length, public_seed)
        shapes = self._shapes(length)
        sides, offset = [], 0
        for transform, shape in zip(self._transforms, shapes, strict=False):
            side, offset = _take_side(body, offset, transform.max_side_bytes(shape))
            sides.append(side)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
            flow = self._coder.decode(body[offset:], shapes[-1], public_seed)
            for transform, side, shape in zip(
                reversed(self._transforms), reversed(sides), reversed(shapes[:-1]), strict=True
            ):
                flow = transform.inverse(flow, side, shape, public_seed)
            values: NDArray[np.floating] = flow.reshape(-1)
            if exponent:
                values = np.ldexp(values, exponent)
        if not math.isfinite(max(float(values.max()), -float(values.min()))):
            raise UpdateNotFiniteError("payload", expected="finite values", got="a NaN or an infinity")
        return values

    def max_bytes(self, length: int) -> int:
        """Return the longest payload for ``length`` values; exact unless the spec codes with variable length."""
        shapes = self._shapes(length)
        if self._is_bare:
            return self._coder.max_bytes(shapes[-1])
        sides = [t.max_side_bytes(s) for t, s in zip(self._transforms, shapes, strict=False)]
        return _ENVELOPE + sum(_SIDE.size + n for n in sides if n) + self._coder.max_bytes(shapes[-1])

    def ring_segment(self, name: str, length: int) -> Segment:
        """Return the integers that a secure round sums in place of a segment of ``length`` values. A codec with a ring.

        Raises:
            LayoutError: a ring of fewer than 8 bits, or without room.
        """
        return self._path(length).segment(name)

    def to_ring(
        self, values: NDArray[np.floating], public_seed: bytes, private: PrivateRandomness
    ) -> NDArray[np.int64]:
        """Return a device's integers, signed and within the segment's bound: what is masked. A codec with a ring.

        Args:
            values: one segment, ``[length]``; not changed.
            public_seed: the round's: see :func:`segment_seed`.
            private: this device's own randomness, for rounding.

        Raises:
            UpdateNotFiniteError: a NaN or an infinity.
        """
        path = self._path(values.size)
        return centred(path.encode(self._transformed(values, public_seed), public_seed, private), path.ring_bits)

    def from_ring(self, sums: NDArray[np.int64], length: int, public_seed: bytes) -> NDArray[np.float32]:
        """Return the sum of the devices' segments, ``[length]``, from the sum of what :meth:`to_ring` gave."""
        return self._restored(self._path(length).reals(sums, public_seed), length, public_seed)

    def projection(self, length: int) -> Projection:
        """Return the linear part of a codec with a ring, for a segment of ``length`` values."""
        assert self.ring is not None, "only a ring's linear part stands alone"
        rows, width = self._shapes(length)[-1]
        return self.ring.projection(rows * width)

    def project(self, values: NDArray[np.floating], public_seed: bytes) -> NDArray[np.float32]:
        """Return what is sent of a segment before clamp and rounding, ``[projection.num_values]``; see ``to_ring``."""
        return self.projection(values.size).forward(self._transformed(values, public_seed), public_seed)

    def lift(self, sums: NDArray[np.float32], length: int, public_seed: bytes) -> NDArray[np.float32]:
        """Return the sum of the devices' segments, ``[length]``, from the sum of what :meth:`project` gave."""
        return self._restored(self.projection(length).inverse(sums, public_seed), length, public_seed)

    def _transformed(self, values: NDArray[np.floating], public_seed: bytes) -> NDArray[np.float32]:
        flow = values.reshape(1, -1).astype(np.float32, copy=False)
        for transform in self._transforms:
            flow, _ = transform.forward(flow, public_seed)
        return flow.reshape(-1)

    def _restored(self, values: NDArray[np.float32], length: int, public_seed: bytes) -> NDArray[np.float32]:
        shapes = self._shapes(length)
        flow = values.reshape(shapes[-1])
        for transform, shape in zip(reversed(self._transforms), reversed(shapes[:-1]), strict=True):
            flow = transform.inverse(flow, b"", shape, public_seed)
        return flow.reshape(-1)

    def _path(self, length: int) -> SecurePath:
        assert self.ring is not None, "only a ring's integers are summed under masks"
        rows, width = self._shapes(length)[-1]
        return self.ring.path(rows * width)

    def _opened(self, view: memoryview, length: int, public_seed: bytes) -> tuple[int, memoryview]:
        head, body = view[: _HEAD.size], view[_ENVELOPE:]
        version, exponent, tag = _HEAD.unpack(head)
        if version != PAYLOAD_VERSION:
            raise VersionError("payload", expected=f"version {PAYLOAD_VERSION}", got=str(version), hint="upgrade")
        (crc,) = _CRC.unpack(view[_HEAD.size : _ENVELOPE])
        if crc != zlib.crc32(body, zlib.crc32(head)):
            raise UpdateFormatError(
                "payload", expected="bytes as they were sent", got="another checksum", hint=_DAMAGED
            )
        if tag != self._tag(public_seed, length):
            raise UpdateFormatError(
                "payload", expected=f"the spec {self.text!r}, this seed and {length} values", got="another of them"
            )
        if exponent and not self._rescales:
            raise UpdateFormatError("payload", expected="values as they are", got=f"an exponent of {exponent}")
        return exponent, body

    def _exponent(self, largest: float) -> int:
        if not self._rescales or largest == 0:
            return 0
        exponent = math.frexp(largest)[1]
        return 0 if abs(exponent) <= _USUAL else exponent

    def _shapes(self, length: int) -> list[Shape]:
        """Return the shape before each transform, and what reaches the coder."""
        out: list[Shape] = [(1, length)]
        for transform in self._transforms:
            out.append(transform.shape(out[-1]))
        return out

    def _tag(self, public_seed: bytes, length: int) -> int:
        return int.from_bytes(derive_seed(public_seed, "codec", self.text, length)[:4], "little")


_DAMAGED = "the payload was damaged on the way, or cut short"


def _shape_of(values: NDArray[np.floating]) -> Shape:
    return values.shape[0], values.shape[1]


def _take_side(body: memoryview, offset: int, limit: int) -> tuple[bytes, int]:
    """Return a transform's bytes and where they end; none where it has nothing to say."""
    if not limit:
        return b"", offset
    if offset + _SIDE.size > len(body):
        raise UpdateFormatError("payload", expected="a length", got="the end", hint=_DAMAGED)
    (size,) = _SIDE.unpack(body[offset : offset + _SIDE.size])
    start = offset + _SIDE.size
    if size > limit or start + size > len(body):
        raise UpdateFormatError("payload", expected=f"at most {limit} bytes beside the values", got=str(size))
    return bytes(body[start : start + size]), start + size
