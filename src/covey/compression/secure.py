"""The secure path: reals to integers of a ring, so that a *sum* can be opened and no addend.

::

    device   rotate -> subsample, unscaled -> clamp -> stochastic rounding -> mod 2^B -> pack
    server   sum of integers mod 2^B -> centre -> steps to reals -> scale by 1/p -> scatter -> rotate back, once

Everything but the rounding is linear and the same for all devices (one public seed for the round, one clamp, one step),
so that the sum of what devices send is what one device would have sent of the sum. A sum cannot wrap: an integer has at
most magnitude q and ``n_max * q < 2^(B-1)``.

Under differential privacy only the linear part (:class:`Projection`) is this path's: what it gives is clipped, rounded
and noised by :mod:`covey.privacy`, once, and the integers are summed in the same ring.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from covey.compression.packing import pack, packed_bytes, unpack
from covey.compression.rotation import Rotation
from covey.compression.stage import PrivateRandomness, Reals, Shape, tiles, uniforms
from covey.compression.subsampling import kept_per_row, positions
from covey.types.errors import LayoutError, UpdateFormatError, UpdateNotFiniteError
from covey.types.segments import Segment

__all__ = ["Projection", "SecurePath", "centred", "pack_residues"]

Integers = NDArray[np.int64]
Residues = NDArray[np.uint32]


@dataclass(frozen=True)
class Projection:
    """The linear part: rotation, and the coordinates that are sent of what it gives. The same for all of a round.

    Law: ``inverse(sum of forward(v))`` is the sum of the ``v`` where all is sent, up to float32; where a part is, its
    expectation over the seed is.

    Attributes:
        length: of the segment.
        keep: p, the part of the rotated coordinates that is sent.
    """

    length: int
    keep: float = 1.0

    @cached_property
    def rotated(self) -> Shape:
        """``[rows, width]`` of what the rotation gives: the segment's length and some padding."""
        return self._rotation.shape((1, self.length))

    @property
    def _rotation(self) -> Rotation:
        return Rotation(interleaved=True)

    @cached_property
    def shape(self) -> Shape:
        """``[rows, kept]`` of what is sent."""
        rows, width = self.rotated
        return rows, kept_per_row(width, self.keep)

    @property
    def num_values(self) -> int:
        """How many values a device sends."""
        return self.shape[0] * self.shape[1]

    @property
    def num_rotated(self) -> int:
        """Of how many."""
        return self.rotated[0] * self.rotated[1]

    def forward(self, values: NDArray[np.floating], public_seed: bytes) -> Reals:
        """Return what is sent of a segment, ``[num_values]``, unscaled.

        Raises:
            UpdateFormatError: another length.
            UpdateNotFiniteError: a NaN or an infinity.
        """
        if values.shape != (self.length,):
            raise UpdateFormatError("update", expected=f"{self.length} values", got=f"shape {list(values.shape)}")
        if not np.isfinite(values).all():
            raise UpdateNotFiniteError("update", expected="finite values", got="a NaN or an infinity")
        rotated, _ = self._rotation.forward(values.astype(np.float32, copy=False).reshape(1, -1), public_seed)
        if self.shape == self.rotated:
            return rotated.reshape(-1)
        at, _ = positions(self.rotated, self.shape[1], public_seed, "subsample")
        return rotated.reshape(-1)[at.reshape(-1)]

    def inverse(self, sums: Reals, public_seed: bytes) -> Reals:
        """Return the sum of the devices' segments, ``[length]``, from the sum of what they sent."""
        values = sums.reshape(self.shape)
        if self.shape != self.rotated:
            at, sizes = positions(self.rotated, self.shape[1], public_seed, "subsample")
            wide = np.zeros(self.rotated, np.float32)
            wide.reshape(-1)[at] = values * sizes.astype(np.float32)
            values = wide
        return self._rotation.inverse(values, b"", (1, self.length), public_seed).reshape(-1)


@dataclass(frozen=True)
class SecurePath:
    """How one segment travels in the secure path; the same for every device of a round.

    Attributes:
        length: of the segment.
        n_max: the most devices that may be in one sum.
        ring_bits: B, 2 to 32.
        norm: the expected L2 norm of one device's segment (times its weight): sets the step, with ``clamp_deviations``.
        keep: p, the part of the rotated coordinates that is sent; the same ones for all.
        clamp_deviations: a coordinate is clamped at so many times its deviation ``norm / sqrt(length)``.

    Raises:
        LayoutError: a ring without room for a single step of each device, or another impossible value.
    """

    length: int
    n_max: int
    ring_bits: int
    norm: float
    keep: float = 1.0
    clamp_deviations: float = 4.0

    def __post_init__(self) -> None:
        positive = (self.length, self.n_max, self.norm, self.clamp_deviations)
        if not (all(0 < x < math.inf for x in positive) and 0 < self.keep <= 1):
            raise LayoutError("secure path", expected="positive, finite sizes and norms, and keep <= 1", got="others")
        if not 2 <= self.ring_bits <= 32 or self.bound < 1:
            raise LayoutError(
                f"secure path: {self.ring_bits} bits",
                expected=f"room for one step of each of {self.n_max} devices in 2 to 32 bits",
                got=f"a bound of {self.bound}",
                hint="widen the ring, or lower the largest cohort",
            )

    @cached_property
    def projection(self) -> Projection:
        """The linear part."""
        return Projection(self.length, self.keep)

    @property
    def num_values(self) -> int:
        """How many integers a device sends."""
        return self.projection.num_values

    @property
    def num_bytes(self) -> int:
        """How many bytes they take, packed."""
        return packed_bytes(self.num_values, self.ring_bits)

    @property
    def clamp(self) -> float:
        """The largest magnitude of a rotated coordinate, in reals."""
        return self.clamp_deviations * self.norm / math.sqrt(self.projection.num_rotated)

    @property
    def bound(self) -> int:
        """q, the largest magnitude of a device's integer: n_max of them cannot wrap."""
        return ((1 << (self.ring_bits - 1)) - 1) // self.n_max

    @property
    def step(self) -> float:
        """The real that an integer of 1 stands for."""
        return self.clamp / self.bound

    def segment(self, name: str) -> Segment:
        """Return the segment of integers that is masked and summed: what secure aggregation must know.

        Raises:
            LayoutError: a ring of fewer than 8 bits, which no segment has.
        """
        return Segment(name, self.num_values, self.bound, self.n_max, ring_bits=self.ring_bits)

    def encode(self, values: NDArray[np.floating], public_seed: bytes, private: PrivateRandomness) -> Residues:
        """Return a device's residues, ``uint32[num_values]``, ready to be masked.

        Args:
            values: the segment, ``[length]``.
            public_seed: the round's, the same for all devices.
            private: for rounding.

        Raises:
            UpdateFormatError: another length.
            UpdateNotFiniteError: a NaN or an infinity.
        """
        sent = self.projection.forward(values, public_seed).reshape(self.projection.shape)
        with np.errstate(over="ignore"):  # an infinity is clamped like any other magnitude
            scaled = sent * np.float32(1 / self.step)
        np.clip(scaled, -self.bound, self.bound, out=scaled)
        residues = self._rounded(scaled, private).reshape(-1).view(np.uint32)
        residues &= np.uint32((1 << self.ring_bits) - 1)
        return residues

    def open(self, total: Residues, public_seed: bytes) -> Reals:
        """Return the sum of the devices' segments from the sum of their residues, ``[length]``.

        Raises:
            UpdateFormatError: another number of residues, or one outside the ring.
        """
        ring = 1 << self.ring_bits
        if total.shape != (self.num_values,) or (self.ring_bits < 32 and total.max() >= ring):
            raise UpdateFormatError(
                "sum", expected=f"{self.num_values} residues below 2^{self.ring_bits}", got="others"
            )
        return self.reals(centred(total, self.ring_bits), public_seed)

    def reals(self, sums: Integers, public_seed: bytes) -> Reals:
        """Return the sum of the devices' segments, ``[length]``, from the sum of their integers.

        The sums of several groups may be added as integers first: they need not fit the ring together.
        """
        return self.projection.inverse((sums * self.step).astype(np.float32), public_seed)

    def pack(self, residues: Residues) -> bytes:
        """Return residues (masked ones, on the wire) in :attr:`num_bytes` bytes."""
        return pack_residues(residues, self.ring_bits)

    def unpack(self, payload: bytes | memoryview) -> Residues:
        """Return the residues. The inverse of :meth:`pack`; raises UpdateFormatError for another length."""
        return unpack(payload, self.num_values, self.ring_bits).astype(np.uint32, copy=False)

    def _rounded(self, scaled: Reals, private: PrivateRandomness) -> NDArray[np.int32]:
        out = np.empty(scaled.shape, np.int32)
        for some, columns in tiles(scaled.shape):
            steps = uniforms(private, scaled[some, columns].shape)
            steps += scaled[some, columns]
            np.floor(steps, out=steps)
            # Once more, in integers: above 2^24 a float32 at the bound may have been rounded past it.
            out[some, columns] = np.clip(steps.astype(np.int64), -self.bound, self.bound)
        return out


def centred(residues: Residues, ring_bits: int) -> Integers:
    """Return residues as the signed integers that they stand for, ``int64``."""
    ring = 1 << ring_bits
    out = residues.astype(np.int64)
    out -= np.where(out >= ring >> 1, ring, 0)
    return out


def pack_residues(residues: Residues, ring_bits: int) -> bytes:
    """Return residues of a ring in ``ring_bits`` bits each, planar (:mod:`covey.compression.packing`)."""
    if ring_bits <= 16:
        return pack(residues.astype(np.uint8 if ring_bits <= 8 else np.uint16), ring_bits)
    return pack(residues, ring_bits)
