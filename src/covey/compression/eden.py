"""EDEN: quantize what a rotation made Gaussian to the Lloyd-Max levels of a Gaussian, then correct the scale.

Vargaftik et al. 2022, "EDEN: Communication-efficient and robust distributed mean estimation"; its one-bit case is DRIVE
(Vargaftik et al. 2021). With z the rotated row, c the nearest levels of ``z sqrt(width) / ||z||`` and
``S = ||z||^2 / <c, z>``, the estimate is ``S c``. Its expected error is ``1 / (1 - D) - 1`` times ``||x||^2``, D the
distortion of the Lloyd-Max quantizer: 0.571, 0.133, 0.0358 and 0.0096 at 1 to 4 bits.

**Bias.** Under a uniformly random rotation the estimate is exactly unbiased. Under the Hadamard rotation that everyone
uses it is only approximately so: not on vectors with few large coordinates, whose rotation is far from Gaussian. The
stage therefore declares itself biased; how much is tested, and stands in docs/compression.md.

Deviations: fractional bits mix b and b + 1 bits by position (the first part of each row) and not by a seeded draw; a
scale is kept for each row (block) and not one for the vector.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from covey.compression.packing import pack, packed_bytes, unpack
from covey.compression.stage import PrivateRandomness, Reals, Shape, tiles
from covey.types.errors import UpdateFormatError

__all__ = ["MAX_BITS", "Eden", "levels"]

MAX_BITS = 4

_HALF_LEVELS = {
    1: (0.7978845608028654,),
    2: (0.4527800398860679, 1.5104176087114887),
    3: (0.24509416307340598, 0.7560052489539643, 1.3439092613750225, 2.151945669890335),
    4: (
        0.12839501671105813,
        0.38804823445328507,
        0.6567589957631145,
        0.9423402689122875,
        1.2562309480263467,
        1.6180460517130526,
        2.069016730231837,
        2.732588804065177,
    ),
}
"""The positive Lloyd-Max levels of N(0, 1), by bits."""


@cache
def levels(bits: int) -> Reals:
    """Return the ``2**bits`` levels, increasing, float32."""
    half = np.array(_HALF_LEVELS[bits])
    out = np.concatenate([-half[::-1], half]).astype(np.float32)
    out.flags.writeable = False
    return out


class Eden:
    """``eden:B``: B bits a coordinate, 1 to 4; a fraction mixes two widths. Follows a rotation.

    Below 1 bit a spec subsamples first: ``eden:0.5`` is ``subsample:0.5|eden:1`` (:mod:`covey.compression.spec`).
    """

    unbiased = False
    composes_with_secagg = False

    def __init__(self, bits: float) -> None:
        self.bits = bits
        self.text = f"eden:{bits:.6g}"

    def max_bytes(self, shape: Shape) -> int:
        """Return the exact size: a scale for each row, then the codes."""
        return 4 * shape[0] + sum(packed_bytes(shape[0] * (stop - start), b) for start, stop, b in self._parts(shape))

    def encode(self, values: Reals, seed: bytes, private: PrivateRandomness) -> bytes:
        """Encode; no private randomness is needed."""
        rows, width = values.shape
        parts = self._parts((rows, width))
        codes = [np.empty((rows, stop - start), np.uint8) for start, stop, _ in parts]
        scales = np.empty(rows, np.float32)
        for some, _ in tiles((rows, width)):
            z = values[some]
            squares = np.sum(z * z, axis=1)  # pairwise: einsum would add up one rounding after the other
            unit = np.sqrt(np.divide(width, squares, out=np.zeros_like(squares), where=squares > 0))
            products = np.zeros(len(z), np.float32)
            for (start, stop, bits), out in zip(parts, codes, strict=True):
                part = z[:, start:stop]
                out[some] = _nearest(part * unit[:, None], bits)
                products += np.sum(levels(bits).take(out[some]) * part, axis=1)
            # A row of zeros has no direction; its scale of 0 makes every code decode to 0.
            scales[some] = np.divide(squares, products, out=np.zeros_like(squares), where=products > 0)
        packed = [pack(c.reshape(-1), bits) for c, (_, _, bits) in zip(codes, parts, strict=True)]
        return b"".join([scales.astype("<f4", copy=False).tobytes(), *packed])

    def decode(self, payload: memoryview, shape: Shape, seed: bytes) -> Reals:
        """Look up the levels and scale them."""
        if len(payload) != self.max_bytes(shape):
            raise UpdateFormatError("eden", expected=f"{self.max_bytes(shape)} bytes", got=str(len(payload)))
        rows, _ = shape
        scales = np.frombuffer(payload, "<f4", count=rows)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise UpdateFormatError("eden", expected="finite scales of at least 0", got="others")
        out = np.empty(shape, np.float32)
        offset = 4 * rows
        for start, stop, bits in self._parts(shape):
            size = packed_bytes(rows * (stop - start), bits)
            codes = unpack(payload[offset : offset + size], rows * (stop - start), bits).reshape(rows, stop - start)
            offset += size
            table = levels(bits)
            for some, _ in tiles((rows, stop - start)):
                np.multiply(table.take(codes[some]), scales[some, None], out=out[some, start:stop])
        return out

    def _parts(self, shape: Shape) -> list[tuple[int, int, int]]:
        """Return (first column, end, bits) of the one or two parts of every row."""
        low = min(int(self.bits), MAX_BITS)
        wide = round((self.bits - low) * shape[1])
        return [p for p in ((0, wide, low + 1), (wide, shape[1], low)) if p[0] < p[1]]


def _nearest(unit: Reals, bits: int) -> NDArray[np.uint8]:
    """Return the index of the nearest level: how many midpoints between levels lie below."""
    table = levels(bits)
    codes: NDArray[np.uint8] = (unit > 0).view(np.uint8)
    if bits == 1:
        return codes
    # By symmetry half of the midpoints do: the magnitude's index, counted up from the middle or down from it.
    size = np.abs(unit)
    above = np.zeros(unit.shape, np.uint8)
    middle = len(table) // 2
    for edge in (table[middle:-1] + table[middle + 1 :]) / 2:
        above += (size > edge).view(np.uint8)
    sign = codes  # middle + above where positive, middle - 1 - above where not
    return np.where(sign, middle + above, middle - 1 - above).astype(np.uint8, copy=False)
