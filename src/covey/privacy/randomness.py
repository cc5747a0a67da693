"""Where noise comes from: a source of bytes that is an argument, and says whether anyone else could know its bytes."""

from typing import Protocol, runtime_checkable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from covey.types.errors import SeededNoiseError

__all__ = ["AesCtr", "NamedRandomness", "Randomness", "refuse_seeded"]

_CHUNK_BYTES = 1 << 16
_ZEROS = bytes(_CHUNK_BYTES)


class Randomness(Protocol):
    """A stream of independent uniform bytes. Not thread-safe: one owner draws at a time.

    ``private`` says whether the bytes come from a fresh seed of the operating system that nobody else holds. Whoever
    can repeat the stream can take the noise away.
    """

    @property
    def private(self) -> bool:
        """Whether nobody else can know the bytes."""
        ...

    def fill(self, out: NDArray[np.uint64] | NDArray[np.uint32]) -> None:
        """Overwrite a contiguous array with random bits."""
        ...


@runtime_checkable
class NamedRandomness(Randomness, Protocol):
    """Seeded randomness whose streams have names: what was drawn can be drawn again. Of simulations only."""

    def named(self, *labels: str | int) -> Randomness:
        """Return the stream of this name, from its beginning. It is never private."""
        ...


class AesCtr:
    """AES-128 in counter mode, from a seed of 32 bytes: 16 of key, 16 of initial counter.

    Computationally indistinguishable from uniform bytes as long as AES is; the same generator that makes secure
    aggregation's masks, and faster than NumPy's own. A seed serves one stream: two streams of one seed are one, and
    :func:`covey.types.rng.derive_seed` makes many seeds of one. Rounding (:mod:`covey.compression`) draws from it too.
    """

    def __init__(self, seed: bytes, *, private: bool) -> None:
        """Begin a stream.

        Args:
            seed: 32 bytes; in production fresh from the operating system, and forgotten after this call.
            private: whether nobody else can know ``seed``.

        Raises:
            ValueError: a seed of another length.
        """
        if len(seed) != 32:
            raise ValueError(f"a seed has 32 bytes, not {len(seed)}")
        self.private = private
        self._stream = Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor()

    def fill(self, out: NDArray[np.uint64] | NDArray[np.uint32]) -> None:
        """See :class:`Randomness`."""
        view = out.view(np.uint8).data
        for start in range(0, len(view), _CHUNK_BYTES):
            part = view[start : start + _CHUNK_BYTES]
            self._stream.update_into(_ZEROS if len(part) == _CHUNK_BYTES else _ZEROS[: len(part)], part)

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes of the stream."""
        return self._stream.update(bytes(num_bytes))


def refuse_seeded(source: Randomness, where: str) -> None:
    """Refuse noise that someone could repeat.

    Raises:
        SeededNoiseError: ``source`` is not private.
    """
    if not source.private:
        raise SeededNoiseError(
            where,
            expected="noise from the operating system",
            got="noise from an injected seed",
            hint="seeded noise is for simulations, whose results say that they are not private",
        )
