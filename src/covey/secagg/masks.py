"""Masks: seeds expanded by AES-128-CTR and added to a vector, a chunk at a time.

A seed is 32 bytes: the AES-128 key and the initial counter block (big-endian, incremented modulo 2^128). The key stream
is read as little-endian words of the segment's word size. A seed belongs to one segment of one pair (or one party) of
one session and is expanded once. A vector of at most 32 bytes, as the counter is, needs no cipher: its mask is the
seed itself, read as words. Expansion and addition are fused: the stream of a chunk goes through a buffer that stays in
the cache, and no vector but the one being masked ever exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from covey.secagg.packing import CHUNK, Words

__all__ = ["SEED_BYTES", "MaskStreams", "SignedSeed", "add_masks"]

SEED_BYTES = 32
_BATCH = 64
"""Streams that advance together: their states and one chunk of the sum stay in the cache."""


@dataclass(frozen=True, slots=True, repr=False)
class SignedSeed:
    """A mask by its seed.

    Attributes:
        seed: 32 bytes: AES-128 key and initial counter block.
        negative: whether the mask is subtracted.
    """

    seed: bytes
    negative: bool = False


class MaskStreams:
    """The masks of one long segment, side by side, chunk by chunk. Not thread-safe; each stream is read once."""

    def __init__(self, seeds: Sequence[SignedSeed], dtype: np.dtype[np.unsignedinteger]) -> None:
        self._streams = [(_encryptor(s.seed), np.subtract if s.negative else np.add) for s in seeds]
        self._dtype = dtype
        self._zeros, self._buffer, self._stream = _scratch(0, dtype)

    def add_next(self, words: Words) -> None:
        """Add the next ``len(words)`` words of every stream to ``words``, in place; at most 65,536 at a time."""
        if words.nbytes != self._zeros.nbytes:
            self._zeros, self._buffer, self._stream = _scratch(words.nbytes, self._dtype)
        for encryptor, combine in self._streams:
            encryptor.update_into(self._zeros, self._buffer)
            combine(words, self._stream, out=words)


def add_masks(total: Words, seeds: Sequence[SignedSeed]) -> None:
    """Add many masks to a whole vector, in place."""
    if total.nbytes <= SEED_BYTES:
        _add_short(total, seeds)
        return
    for first in range(0, len(seeds), _BATCH):
        streams = MaskStreams(seeds[first : first + _BATCH], total.dtype)
        for i in range(0, len(total), CHUNK):
            streams.add_next(total[i : i + CHUNK])


def _add_short(total: Words, seeds: Sequence[SignedSeed]) -> None:
    for negative, combine in ((False, np.add), (True, np.subtract)):
        raw = b"".join(s.seed for s in seeds if s.negative is negative)
        words = np.frombuffer(raw, total.dtype).reshape(-1, SEED_BYTES // total.itemsize)[:, : len(total)]
        combine(total, words.sum(axis=0, dtype=total.dtype), out=total)


def _encryptor(seed: bytes) -> CipherContext:
    if len(seed) != SEED_BYTES:
        raise ValueError("a mask seed has 32 bytes")
    context: CipherContext = Cipher(AES(seed[:16]), CTR(seed[16:])).encryptor()
    return context


_ZEROS = bytes(8 * CHUNK)


def _scratch(num_bytes: int, dtype: np.dtype[np.unsignedinteger]) -> tuple[memoryview, bytearray, Words]:
    # update_into asks for one block more than it writes
    buffer = bytearray(num_bytes + 16)
    return memoryview(_ZEROS)[:num_bytes], buffer, np.frombuffer(buffer, dtype, num_bytes // dtype.itemsize)
