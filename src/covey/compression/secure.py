"""The secure path: reals to integers of a ring, so that a *sum* can be opened and no addend.

::

    device   rotate -> subsample, unscaled -> clip -> clamp -> stochastic rounding -> [noise] -> mod 2^B -> pack
    server   sum of integers mod 2^B -> centre -> steps to reals -> scale by 1/p -> scatter -> rotate back, once

Everything but the rounding is linear and the same for all devices (one public seed for the round, one clamp, one step),
so that the sum of what devices send is what one device would have sent of the sum. A sum cannot wrap: an integer has at
most magnitude q and ``n_max * q < 2^(B-1)``.

Under differential privacy the clip is ``c sqrt(p)`` for a subsampled part p, and rounding is *conditional* (Kairouz et
al. 2021, 2102.06387, section 4.1): it is repeated until the integers' norm is at most a bound that holds for the
sensitivity, at the price of a bias of at most ``exp(-beta)`` tails; without a clip it is plain and exactly unbiased.
"""

import math
from collections.abc import Callable
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

__all__ = ["SecurePath"]

_BETA = math.exp(-0.5)
_MOST_TRIES = 200
_NOISE_DEVIATIONS = 8.0

Integers = NDArray[np.int64]
Residues = NDArray[np.uint32]


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
        clip_norm: c: the segment is scaled down to ``c sqrt(p)`` after subsampling, and rounding is conditional; None:
            neither.
        noise_deviation: standard deviation, in reals, of all noise in the opened sum; 8 of them have room in the ring.

    Raises:
        LayoutError: a ring without room for a single step of each device, or another impossible value.
    """

    length: int
    n_max: int
    ring_bits: int
    norm: float
    keep: float = 1.0
    clamp_deviations: float = 4.0
    clip_norm: float | None = None
    noise_deviation: float = 0.0

    def __post_init__(self) -> None:
        positive = (self.length, self.n_max, self.norm, self.clamp_deviations, self.clip_norm or 1.0)
        if not (
            all(0 < x < math.inf for x in positive) and 0 < self.keep <= 1 and 0 <= self.noise_deviation < math.inf
        ):
            raise LayoutError("secure path", expected="positive, finite sizes and norms, and keep <= 1", got="others")
        if not 2 <= self.ring_bits <= 32 or self.bound < 1:
            raise LayoutError(
                f"secure path: {self.ring_bits} bits",
                expected=f"room for one step of each of {self.n_max} devices in 2 to 32 bits",
                got=f"a bound of {self.bound}",
                hint="widen the ring, or lower the largest cohort or the noise",
            )

    @cached_property
    def _rotated(self) -> Shape:
        return self._rotation.shape((1, self.length))

    @property
    def _rotation(self) -> Rotation:
        return Rotation(interleaved=True)

    @cached_property
    def shape(self) -> Shape:
        """``[rows, kept]`` of what is sent."""
        rows, width = self._rotated
        return rows, kept_per_row(width, self.keep)

    @property
    def num_values(self) -> int:
        """How many integers a device sends."""
        return self.shape[0] * self.shape[1]

    @property
    def num_bytes(self) -> int:
        """How many bytes they take, packed."""
        return packed_bytes(self.num_values, self.ring_bits)

    @property
    def clamp(self) -> float:
        """The largest magnitude of a rotated coordinate, in reals."""
        rows, width = self._rotated
        return self.clamp_deviations * self.norm / math.sqrt(rows * width)

    @property
    def bound(self) -> int:
        """q, the largest magnitude of a device's integer before noise: n_max of them and the noise cannot wrap."""
        room = (1 << (self.ring_bits - 1)) - 1
        return int(room / (self.n_max + _NOISE_DEVIATIONS * self.noise_deviation / self.clamp))

    @property
    def step(self) -> float:
        """The real that an integer of 1 stands for."""
        return self.clamp / self.bound

    @property
    def norm_bound(self) -> float | None:
        """The most L2 norm, in steps, of a device's integers before noise: the sensitivity. None without a clip.

        ``min(c + sqrt(m), sqrt(c^2 + m / 4 + sqrt(2 ln(1 / beta)) (c + sqrt(m) / 2)))`` for a clip of c steps and m
        integers (2102.06387, proposition 24), beta = exp(-1/2).
        """
        if self.clip_norm is None:
            return None
        c, m = self._clip / self.step, self.num_values
        tail = math.sqrt(2 * math.log(1 / _BETA)) * (c + math.sqrt(m) / 2)
        return min(c + math.sqrt(m), math.sqrt(c * c + m / 4 + tail))

    @property
    def _clip(self) -> float:
        assert self.clip_norm is not None
        return self.clip_norm * math.sqrt(self.num_values / (self._rotated[0] * self._rotated[1]))

    def segment(self, name: str) -> Segment:
        """Return the segment of integers that is masked and summed: what secure aggregation must know.

        Raises:
            LayoutError: a ring of fewer than 8 bits, which no segment has.
        """
        return Segment(name, self.num_values, self.bound, self.n_max, ring_bits=self.ring_bits)

    def encode(
        self,
        values: NDArray[np.floating],
        public_seed: bytes,
        private: PrivateRandomness,
        *,
        noise: Callable[[int], Integers] | None = None,
    ) -> Residues:
        """Return a device's residues, ``uint32[num_values]``, ready to be masked.

        Args:
            values: the segment, ``[length]``.
            public_seed: the round's, the same for all devices.
            private: for rounding.
            noise: gives so many integers of the device's own noise, added before the modulus.

        Raises:
            UpdateFormatError: another length.
            UpdateNotFiniteError: a NaN or an infinity.
        """
        if values.shape != (self.length,):
            raise UpdateFormatError("update", expected=f"{self.length} values", got=f"shape {list(values.shape)}")
        if not np.isfinite(values).all():
            raise UpdateNotFiniteError("update", expected="finite values", got="a NaN or an infinity")
        rotated, _ = self._rotation.forward(values.astype(np.float32, copy=False).reshape(1, -1), public_seed)
        if self.shape != self._rotated:
            at, _ = positions(self._rotated, self.shape[1], public_seed, "subsample")
            rotated = rotated.reshape(-1)[at]
        integers = self._rounded(self._scaled(rotated), private).reshape(-1)
        if noise is not None:
            # Of the sum only the low 32 bits matter, and 2^B divides 2^32.
            integers = (integers + noise(self.num_values)).astype(np.int32)
        residues = integers.view(np.uint32)
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
        return self.reals(self.centred(total), public_seed)

    def centred(self, residues: Residues) -> Integers:
        """Return residues as the signed integers that they stand for, ``int64``."""
        ring = 1 << self.ring_bits
        out = residues.astype(np.int64)
        out -= np.where(out >= ring >> 1, ring, 0)
        return out

    def reals(self, sums: Integers, public_seed: bytes) -> Reals:
        """Return the sum of the devices' segments, ``[length]``, from the sum of their integers.

        The sums of several groups may be added as integers first: they need not fit the ring together.
        """
        values = (sums * self.step).astype(np.float32).reshape(self.shape)
        if self.shape != self._rotated:
            at, sizes = positions(self._rotated, self.shape[1], public_seed, "subsample")
            wide = np.zeros(self._rotated, np.float32)
            wide.reshape(-1)[at] = values * sizes.astype(np.float32)
            values = wide
        return self._rotation.inverse(values, b"", (1, self.length), public_seed).reshape(-1)

    def pack(self, residues: Residues) -> bytes:
        """Return residues (masked ones, on the wire) in :attr:`num_bytes` bytes."""
        if self.ring_bits <= 16:
            return pack(residues.astype(np.uint8 if self.ring_bits <= 8 else np.uint16), self.ring_bits)
        return pack(residues, self.ring_bits)

    def unpack(self, payload: bytes | memoryview) -> Residues:
        """Return the residues. The inverse of :meth:`pack`; raises UpdateFormatError for another length."""
        return unpack(payload, self.num_values, self.ring_bits).astype(np.uint32, copy=False)

    def _scaled(self, sent: Reals) -> Reals:
        """Return the sent coordinates in steps, clipped and clamped."""
        factor = 1 / self.step
        if self.clip_norm is not None:
            norm = float(np.linalg.norm(sent.astype(np.float64)))
            factor *= min(1.0, self._clip / max(norm, 1e-300))
        with np.errstate(over="ignore"):  # an infinity is clamped like any other magnitude
            scaled = sent * np.float32(factor)
        return np.clip(scaled, -self.bound, self.bound, out=scaled)

    def _rounded(self, scaled: Reals, private: PrivateRandomness) -> NDArray[np.int32]:
        limit = self.norm_bound
        for _ in range(_MOST_TRIES):
            out = np.empty(scaled.shape, np.int32)
            for some, columns in tiles(scaled.shape):
                steps = uniforms(private, scaled[some, columns].shape)
                steps += scaled[some, columns]
                np.floor(steps, out=steps)
                # Once more, in integers: above 2^24 a float32 at the bound may have been rounded past it.
                out[some, columns] = np.clip(steps.astype(np.int64), -self.bound, self.bound)
            if limit is None or float(np.linalg.norm(out.astype(np.float64))) <= limit:
                return out
        raise LayoutError(  # one try succeeds with a probability of at least 1 - exp(-1/2)
            "conditional rounding", expected=f"a norm of at most {limit:g} steps", got="more, 200 times in a row"
        )
