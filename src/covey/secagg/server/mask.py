"""Step 3 of the server: fold masked inputs into one running sum as they come."""

import numpy as np

from covey.secagg.group import Group
from covey.secagg.messages import MaskedInput, Survivors, bitmap
from covey.secagg.packing import CHUNK, Words, check_padding, chunks, packed_bytes, unpack_onto, word_dtype

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
        longest = {t.dtype: len(t) for t in sorted(self.totals, key=len)}
        self._scratch = {dtype: np.zeros(min(CHUNK, length), dtype) for dtype, length in longest.items()}

    def accept(self, position: int, message: bytes) -> None:
        """Fold one masked input.

        Raises:
            SecAggMessageError: malformed; the sum is untouched.
        """
        segments, start = self.group.session.segments, 0
        masked = MaskedInput.decode(self.group.session, self.group.indices[position], message)
        packed, parts = np.frombuffer(masked.packed, np.uint8), []
        for s in segments:
            end = start + packed_bytes(s.length, s.ring_bits)
            parts.append(packed[start:end])
            check_padding(parts[-1], s.length, s.ring_bits)
            start = end
        for s, total, data in zip(segments, self.totals, parts, strict=True):
            scratch = self._scratch[total.dtype]
            for coordinates, piece in chunks(s.length, s.ring_bits):
                unpack_onto(total[coordinates], data[piece], s.ring_bits, scratch)
        self.survivors.add(position)

    def close(self) -> dict[int, bytes]:
        """Return what goes to each of U3, by position: who is in the sum."""
        message = Survivors(bitmap(self.survivors, self.group.size)).encode(self.group.session)
        return dict.fromkeys(self.survivors, message)

    def clear(self) -> None:
        """Overwrite the sum with zeros."""
        for total in self.totals:
            total.fill(0)
