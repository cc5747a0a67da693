"""Step 3 of the server: fold masked inputs into one running sum as they come."""

import numpy as np

from covey.secagg.encoding import bitmap
from covey.secagg.group import Group
from covey.secagg.messages import MaskedInput, Survivors
from covey.secagg.packing import CHUNK, Words, check_padding, chunks, packed_bytes, unpack_onto, word_dtype
from covey.types.segments import Segment

__all__ = ["Masking"]


class Masking:
    """The running sum of a group: never more than one, and nobody's vector beside it.

    A masked input is checked whole before the first word of it is folded: the sum has all of it or nothing.
    """

    def __init__(self, group: Group, sharers: frozenset[int]) -> None:
        self.group = group
        self.sharers = sharers
        self.totals: list[Words] = [np.zeros(s.length, word_dtype(s.ring_bits)) for s in group.session.segments]
        self.survivors: set[int] = set()
        self._scratch = np.zeros(CHUNK * 8, np.uint8)
        self._padded: list[tuple[slice, Segment]] = []
        self._chunks: list[tuple[Words, slice, int]] = []
        start = 0
        for s, total in zip(group.session.segments, self.totals, strict=True):
            end = start + packed_bytes(s.length, s.ring_bits)
            self._padded += [(slice(start, end), s)] if s.length * s.ring_bits < (end - start) * 8 else []
            for coordinates, piece in chunks(s.length, s.ring_bits):
                here = slice(start + piece.start, start + piece.stop)
                self._chunks.append((total[coordinates], here, s.ring_bits))
            start = end

    def accept(self, position: int, message: bytes) -> None:
        """Fold one masked input.

        Raises:
            SecAggMessageError: malformed; the sum is untouched.
        """
        masked = MaskedInput.decode(self.group.session, self.group.indices[position], message)
        packed = np.frombuffer(masked.packed, np.uint8)
        for where, segment in self._padded:
            check_padding(packed[where], segment.length, segment.ring_bits)
        for words, where, ring_bits in self._chunks:
            unpack_onto(words, packed[where], ring_bits, self._scratch)
        self.survivors.add(position)

    def close(self) -> dict[int, bytes]:
        """Return what goes to each of U3, by position: who is in the sum."""
        message = Survivors(bitmap(self.survivors, self.group.size)).encode(self.group.session)
        return dict.fromkeys(self.survivors, message)

    def clear(self) -> None:
        """Overwrite the sum with zeros."""
        for total in self.totals:
            total.fill(0)
