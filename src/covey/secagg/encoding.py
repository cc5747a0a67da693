"""What all messages share: their first 40 bytes, a reader that leaves nothing over, and bitmaps."""

import struct
from collections.abc import Iterable

import numpy as np

from covey.secagg.parameters import MAX_PARTIES
from covey.secagg.session import VERSION, Session
from covey.types.errors import SecAggMessageError

__all__ = ["EVERYBODY", "HEADER_BYTES", "Reader", "bitmap", "body", "header", "positions"]

HEADER_BYTES = 40
_MAGIC = b"CVSA"
EVERYBODY = 0xFFFF


def header(session: Session, kind: int, index: int = EVERYBODY) -> bytes:
    """Return the 40 bytes with which a message begins."""
    return _MAGIC + struct.pack("<BBH", VERSION, kind, index) + session.id


def body(session: Session, kind: int, index: int, message: bytes) -> memoryview:
    """Return what follows the header.

    Raises:
        SecAggMessageError: not a message of this kind, session and party.
    """
    if bytes(message[:HEADER_BYTES]) != header(session, kind, index):
        raise SecAggMessageError(
            f"message of kind {kind}", expected="one of this version, kind, session and party", got="another",
            hint="was this side told another plan, checkpoint or threshold than the other?",
        )  # fmt: skip
    return memoryview(message)[HEADER_BYTES:]


class Reader:
    """Takes fixed pieces off a body; a piece that is missing, or a byte left over, raises."""

    def __init__(self, name: str, data: memoryview) -> None:
        self._name, self._data = name, data

    def take(self, num_bytes: int) -> bytes:
        """Take so many bytes."""
        if num_bytes > len(self._data):
            raise self.malformed(f"{num_bytes} more bytes", f"{len(self._data)}")
        piece, self._data = bytes(self._data[:num_bytes]), self._data[num_bytes:]
        return piece

    def number(self, num_bytes: int) -> int:
        """Take a number."""
        return int.from_bytes(self.take(num_bytes), "little")

    def count(self, at_most: int) -> int:
        """Take a count of at most ``at_most``."""
        count = self.number(2)
        if count > at_most:
            raise self.malformed(f"a count of at most {at_most}", str(count))
        return count

    def pieces(self, count: int | None, num_bytes: int) -> bytes:
        """Take a count, which may be prescribed, and that many pieces, all that is left."""
        found = self.count(MAX_PARTIES)
        if count is not None and found != count:
            raise self.malformed(f"{count} shares", str(found))
        raw = self.take(found * num_bytes)
        self.end()
        return raw

    def bits(self, num_parties: int) -> bytes:
        """Take a bitmap."""
        bits = self.take(-(-num_parties // 8))
        if num_parties % 8 and bits[-1] >> (num_parties % 8):
            raise self.malformed("zeros behind the last party", "ones")
        return bits

    def end(self) -> None:
        """Raise unless nothing is left."""
        if len(self._data):
            raise self.malformed("the end", f"{len(self._data)} more bytes")

    def malformed(self, expected: str, got: str) -> SecAggMessageError:
        """Return the error for what was read."""
        return SecAggMessageError(self._name, expected=expected, got=got)


def bitmap(members: Iterable[int], num_parties: int) -> bytes:
    """Return a set of positions as bits."""
    bits = np.zeros(num_parties, bool)
    bits[list(members)] = True
    return np.packbits(bits, bitorder="little").tobytes()


def positions(bits: bytes) -> frozenset[int]:
    """Return the positions of the ones."""
    return frozenset(np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")).tolist())
