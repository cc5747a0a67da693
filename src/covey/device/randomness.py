"""A device's private randomness: AES-128 in counter mode, from 32 bytes of the operating system's.

The seed is a parameter so that a simulation can inject its own, and repeat; the agent of a real device has no way to be
given one (:mod:`covey.device.agent` draws it with ``os.urandom`` for every session).
"""

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from covey.types.rng import derive_seed

__all__ = ["PrivateStream"]


class PrivateStream:
    """An endless stream of bytes that only the holder of the seed can tell from random ones.

    Args:
        seed: 32 secret bytes.
        label: what the stream is for; streams of different labels are independent. The derived key and initial counter
            are used for this one stream only.
    """

    def __init__(self, seed: bytes, label: str) -> None:
        key = derive_seed(seed, "private", label)
        self._encryptor = Cipher(algorithms.AES(key[:16]), modes.CTR(key[16:])).encryptor()

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes."""
        return self._encryptor.update(bytes(num_bytes))
