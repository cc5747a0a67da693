"""Randomness as an argument, derived from a seed by labels.

Streams are independent by their labels, never by the order of use: the examples that device 17 shuffles in round 3 do
not depend on who else took part or on which worker did it. That is what makes runs repeatable at any number of
workers. **For simulation and for public choices only**: keys, masks and noise on a real device come from the
operating system.
"""

import hashlib

import numpy as np

__all__ = ["derive_seed", "generator", "key_words"]


def derive_seed(seed: int | bytes, *labels: str | int) -> bytes:
    """Return 32 bytes that depend on ``seed`` and on every label, in order.

    Labels are length-prefixed, so that ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    digest = hashlib.sha256()
    for part in (seed, *labels):
        raw = part if isinstance(part, bytes) else str(part).encode()
        kind = b"b" if isinstance(part, bytes) else b"s" if isinstance(part, str) else b"i"
        digest.update(kind + len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def generator(seed: int | bytes, *labels: str | int) -> np.random.Generator:
    """Return NumPy's Philox generator (counter-based, the same on every platform) for this seed and these labels."""
    raw = derive_seed(seed, *labels)
    return np.random.Generator(np.random.Philox(key=np.frombuffer(raw[:16], "<u8").astype(np.uint64)))


def key_words(seed: int | bytes, *labels: str | int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    """Return uint32[2]: the threefry key that a plan's graph takes for dropout."""
    return np.frombuffer(derive_seed(seed, *labels)[:8], "<u4").astype(np.uint32)
