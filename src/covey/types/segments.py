"""Segments and their sum: aggregation as a monoid over integers.

An update is an ordered list of segments, each a vector of integers. Sums are taken modulo ``2**ring_bits``, and a
segment can only be built when no sum of ``n_max`` honest contributions can wrap: a modular sum cannot be seen to
wrap, so it must not be able to.

Laws (property-tested): ``zero`` is neutral, ``merge`` is associative and commutative, and folding in any order, in
any number of shards, gives the same bits. That is why a streamed, a sharded, a secure and a simulated round agree
exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import LayoutError, UpdateFormatError, UpdateNotFiniteError, UpdateRangeError

__all__ = ["HEADER", "Segment", "SegmentSum", "header_segment", "real_segment", "to_fixed_point"]

HEADER = "header"
"""Name of the segment with the counter, the weight and the metric sums; it comes first in every update."""

_HEADER_FRACTION_BITS = 20
_HEADER_BOUND = 1 << 46
_MAX_FRACTION_BITS = 40
_CHUNK = 1 << 16  # 64 Ki coordinates: the float64 scratch of one chunk stays in the second-level cache

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """One vector of integers that is summed over devices.

    Attributes:
        name: unique in its update.
        length: number of coordinates.
        bound: the largest magnitude that one device may contribute to one coordinate.
        n_max: the most contributions that may ever be added: the most devices *selected*, not the goal.
        ring_bits: sums are modulo ``2**ring_bits``; 8 to 32, or 64.
        signed: whether contributions may be negative.
        fraction_bits: a coordinate stands for the real ``integer * 2**-fraction_bits``.

    Raises:
        LayoutError: ``n_max * bound`` does not fit, so that a sum could wrap unseen.
    """

    name: str
    length: int
    bound: int
    n_max: int
    ring_bits: int = 64
    signed: bool = True
    fraction_bits: int = 0

    def __post_init__(self) -> None:
        room = 1 << (self.ring_bits - 1 if self.signed else self.ring_bits)
        if not (8 <= self.ring_bits <= 32 or self.ring_bits == 64):
            raise LayoutError(f"segment {self.name!r}", expected="ring_bits of 8 to 32, or 64", got=str(self.ring_bits))
        if self.length < 1 or self.bound < 1 or self.n_max < 1:
            raise LayoutError(
                f"segment {self.name!r}",
                expected="length, bound and n_max of at least 1",
                got=f"{self.length}, {self.bound}, {self.n_max}",
            )
        if self.n_max * self.bound >= room:
            raise LayoutError(
                f"segment {self.name!r}",
                expected=f"n_max * bound < 2**{self.ring_bits - int(self.signed)}",
                got=f"{self.n_max} * {self.bound}",
                hint="lower the bound or the largest cohort, or widen the ring",
            )


def header_segment(num_metrics: int, n_max: int) -> Segment:
    """Return the header: the constant 1, the weight, then ``num_metrics`` metric sums with 20 fraction bits.

    The opened counter must equal the number of devices that were counted: it detects diverged keys or shares.
    Counter and weight are scaled like the metrics, so that one rule reads the whole segment.
    """
    return Segment(HEADER, 2 + num_metrics, _HEADER_BOUND, n_max, fraction_bits=_HEADER_FRACTION_BITS)


def real_segment(name: str, length: int, bound: float, n_max: int, ring_bits: int = 64) -> Segment:
    """Return a fixed-point segment for reals of magnitude at most ``bound``.

    In 64 bits it keeps as many fraction bits as fit below ``2**62 / (n_max * bound)``, at most 40: for 10,000 devices
    of weight up to 10,000 and deltas up to 16 that is a step of ``2**-31`` on the *weighted* sum, finer than float32
    resolves the weighted delta of any device with a delta above ``2**-20``. A narrower ring keeps fewer.
    """
    fraction_bits, room = _MAX_FRACTION_BITS, 1 << min(62, ring_bits - 1)
    while fraction_bits > 0 and n_max * (int(bound * 2**fraction_bits) + 1) >= room:
        fraction_bits -= 1
    return Segment(name, length, int(bound * 2**fraction_bits) + 1, n_max, ring_bits, fraction_bits=fraction_bits)


def to_fixed_point(values: NDArray[np.floating], segment: Segment) -> Ints:
    """Round reals to the segment's integers, to nearest (ties to even).

    Raises:
        UpdateFormatError: wrong length.
        UpdateNotFiniteError: a NaN or an infinity.
        UpdateRangeError: a magnitude above the segment's bound.
    """
    check_reals(values, segment)
    out = np.empty(segment.length, np.int64)
    for i in range(0, segment.length, _CHUNK):
        out[i : i + _CHUNK] = _rounded(values[i : i + _CHUNK], segment)
    return out


def check_reals(values: NDArray[np.floating], segment: Segment) -> None:
    """Raise unless ``values`` may be folded into ``segment``; see :func:`to_fixed_point` for the errors."""
    if values.shape != (segment.length,):
        raise UpdateFormatError(
            f"segment {segment.name!r}", expected=f"{segment.length} values", got=f"shape {list(values.shape)}"
        )
    # One reduction finds NaN and infinity (both propagate through max) and the range: no copy of the vector is made.
    largest = max(float(values.max()), -float(values.min()))
    if not np.isfinite(largest):
        raise UpdateNotFiniteError(
            f"segment {segment.name!r}",
            expected="finite values",
            got="a NaN or an infinity",
            hint="training diverged on this device: a lower learning rate or a gradient clip usually cures it",
        )
    limit = segment.bound * 2.0**-segment.fraction_bits
    if largest >= limit:
        raise UpdateRangeError(
            f"segment {segment.name!r}",
            expected=f"magnitudes below {limit:g}",
            got=f"{largest:g}",
            hint="raise max_delta in the plan, or lower the learning rate",
        )


def _rounded(chunk: NDArray[np.floating], segment: Segment) -> Ints:
    scaled = np.multiply(chunk, 2.0**segment.fraction_bits, dtype=np.float64)
    rounded: Ints = np.rint(scaled, out=scaled).astype(np.int64)
    return rounded


class SegmentSum:
    """The running sum of one shard: integers only, nothing of any single device.

    Not thread-safe: one owner folds at a time.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)
        self.num_folded = 0
        self._sums = {s.name: np.zeros(s.length, np.int64) for s in self.segments}
        if len(self._sums) != len(self.segments):
            raise LayoutError("segments", expected="distinct names", got=", ".join(s.name for s in self.segments))

    def fold_reals(self, values: Mapping[str, NDArray[np.floating]]) -> None:
        """Add one device's contribution, given as reals: all of it, or, when a check fails, nothing.

        Raises:
            UpdateFormatError, UpdateNotFiniteError, UpdateRangeError: see :func:`to_fixed_point`; the sum is untouched.
        """
        if set(values) != set(self._sums):
            raise UpdateFormatError("update", expected=f"segments {sorted(self._sums)}", got=f"{sorted(values)}")
        for s in self.segments:
            check_reals(values[s.name], s)
        if self.num_folded >= min(s.n_max for s in self.segments):
            raise LayoutError(
                "sum",
                expected=f"at most {self.num_folded} contributions",
                got="one more",
                hint="raise n_max in the plan",
            )
        for s in self.segments:
            total, reals = self._sums[s.name], values[s.name]
            for i in range(0, s.length, _CHUNK):
                total[i : i + _CHUNK] += _rounded(reals[i : i + _CHUNK], s)
        self.num_folded += 1

    @classmethod
    def opened(cls, segments: Sequence[Segment], sums: Mapping[str, NDArray[np.integer]], num_folded: int) -> Self:
        """Return a sum that was made elsewhere: opened by secure aggregation, from ``num_folded`` contributions.

        Raises:
            LayoutError: sums of other names or lengths.
        """
        total = cls(segments)
        if {k: len(v) for k, v in sums.items()} != {s.name: s.length for s in segments}:
            raise LayoutError("opened sum", expected="a sum for each segment", got="others")
        for name, values in sums.items():
            total._sums[name][:] = values
        total.num_folded = num_folded
        return total

    def merge(self, other: "SegmentSum") -> None:
        """Add another shard's sum. Exact, associative and commutative.

        Raises:
            LayoutError: the shards have different segments.
        """
        if other.segments != self.segments:
            raise LayoutError("shard", expected="the same segments", got="others")
        for name, total in self._sums.items():
            total += other._sums[name]
        self.num_folded += other.num_folded

    def integers(self, name: str) -> Ints:
        """Return a copy of one segment's integer sum."""
        return self._sums[name].copy()

    def reals(self, name: str) -> NDArray[np.float64]:
        """Return one segment's sum as reals, float64."""
        segment = next(s for s in self.segments if s.name == name)
        return np.asarray(self._sums[name] * 2.0**-segment.fraction_bits)

    def clear(self) -> None:
        """Overwrite the sum with zeros: a shard that is discarded leaves nothing behind."""
        for total in self._sums.values():
            total.fill(0)
        self.num_folded = 0
