"""Public randomness: what both sides draw from the seed of a session or of a round, without any state.

The source is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the first 16 bytes
of ``derive_seed(seed, label)`` as its key (two little-endian words) and a counter that starts at 0 and is increased
*before* each block of four 64-bit words. Only its raw words are used, never NumPy's distributions, whose streams may
change between versions: an implementation in another language draws the same.
"""

import numpy as np
from numpy.typing import NDArray

from covey.compression.stage import Reals
from covey.types.rng import derive_seed

__all__ = ["expand_signs", "picks", "sign_bytes", "words"]

_SIGNS = (1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)).astype(np.float32)
"""Row ``b``: the signs that the bits of byte ``b`` stand for."""


def words(seed: bytes, label: str, count: int) -> NDArray[np.uint64]:
    """Return the first ``count`` 64-bit words of a labelled stream."""
    key = np.frombuffer(derive_seed(seed, label)[:16], "<u8").astype(np.uint64)
    out: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(count)
    return out


def sign_bytes(seed: bytes, label: str, count: int) -> NDArray[np.uint8]:
    """Return at least ``count`` independent fair signs, eight to a byte: see :func:`expand_signs`."""
    return words(seed, label, -(-count // 64)).astype("<u8", copy=False).view(np.uint8)


def expand_signs(packed: NDArray[np.uint8]) -> Reals:
    """Return eight signs, 1 or -1, for each byte, the lowest bit first; a set bit is a minus."""
    return _SIGNS.take(packed, axis=0).reshape(-1)


def picks(seed: bytes, label: str, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each size s a draw from ``0 .. s - 1``.

    A 32-bit draw u gives ``floor(u * s / 2**32)``: every value has a probability within ``2**-32`` of ``1 / s``.
    """
    draws = words(seed, label, -(-len(sizes) // 2)).astype("<u8", copy=False).view("<u4")[: len(sizes)]
    return ((draws.astype(np.uint64) * sizes.astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
