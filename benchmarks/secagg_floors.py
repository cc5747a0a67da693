"""What no implementation of secure aggregation can do without, timed: the floors of ``benchmarks.secagg``."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from covey.secagg.keys import hkdf
from covey.secagg.packing import CHUNK, chunks, pack, packed_bytes, unpack_onto, word_dtype
from covey.secagg.shamir import combine_many, split

__all__ = ["primitives"]


def seconds(f: Callable[[], Any], repeats: int = 7) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        f()
        times.append(time.process_time() - start)
    return statistics.median(times)


def primitives(m: int, bits: int, k: int, t: int, is_complete: bool) -> dict[str, float]:
    """Time what no implementation can do without, in seconds each."""
    rng = np.random.default_rng(0)
    own = [rng.choice(np.arange(1, 60_000, dtype=np.uint16), t, replace=False) for _ in range(100)]
    holders = np.stack(own[:1] * 100 if is_complete else own)
    shares = rng.integers(0, 1 << 16, (100, t, 16), dtype=np.uint16)
    private = X25519PrivateKey.generate()
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()
    signer = Ed25519PrivateKey.generate()
    raw, signature = signer.public_key().public_bytes_raw(), signer.sign(b"x" * 64)
    dtype = word_dtype(bits)
    total, scratch = np.zeros(m, dtype), np.zeros(CHUNK * 8, np.uint8)
    packed = np.zeros(packed_bytes(m, bits), np.uint8)
    received = [packed.copy() for _ in range(1 + 100_000_000 // packed.nbytes)]  # more than any cache holds
    zeros, buffer = bytes(CHUNK * dtype.itemsize), bytearray(CHUNK * dtype.itemsize + 16)
    stream = np.frombuffer(buffer, dtype, CHUNK)

    def mask() -> None:
        encryptor = Cipher(AES(bytes(16)), CTR(bytes(16))).encryptor()
        for i in range(0, m, CHUNK):
            words = total[i : i + CHUNK]
            encryptor.update_into(memoryview(zeros)[: words.nbytes], buffer)
            np.add(words, stream[: len(words)], out=words)

    def pack_all() -> None:
        for coordinates, piece in chunks(m, bits):
            pack(total[coordinates], bits, packed[piece])

    def unpack_received() -> None:
        for one in received:
            for coordinates, piece in chunks(m, bits):
                unpack_onto(total[coordinates], one[piece], bits, scratch)

    def many(f: Callable[[], Any], count: int = 50) -> float:
        return seconds(lambda: [f() for _ in range(count)]) / count

    return {
        "agree": many(lambda: private.exchange(X25519PublicKey.from_public_bytes(public))),
        "verify": many(lambda: Ed25519PublicKey.from_public_bytes(raw).verify(signature, b"x" * 64)),
        "mask": many(mask, 10),
        "pack": seconds(pack_all),
        "unpack": seconds(unpack_received, 3) / len(received),
        "key": many(lambda: hkdf(raw, raw, bytes(150))),
        "seal": many(lambda: AESGCM(raw).encrypt(bytes(12), bytes(64), bytes(90))),
        "split": seconds(lambda: split(bytes(64), t, range(1, k + 2), os.urandom)),
        "combine": seconds(lambda: combine_many(holders, shares)) / 100,
    }
