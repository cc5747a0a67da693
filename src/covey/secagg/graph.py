"""Who shares keys with whom: everybody with everybody, or a random k-regular graph.

The sparse graph is that of SecAgg+ (Bell et al. 2020, section 3): the parties of U1 are put on a ring in a random order
and each is joined to the ``k / 2`` nearest on either side. The order comes from a seed that hashes the session and all
of U1's keys, so every party computes it for itself. A server that lies about U1 could still search for keys that place
the parties as it likes: sparse graphs are for honest-but-curious servers only.
"""

import numpy as np
from numpy.typing import NDArray

from covey.secagg.masks import SignedSeed, add_masks

__all__ = ["Graph"]


class Graph:
    """The graph over the positions of U1, 0 to ``num_parties - 1``."""

    def __init__(self, num_parties: int, degree: int, seed: bytes) -> None:
        """Draw the graph.

        Args:
            num_parties: the size of U1.
            degree: ``k``, even; where it reaches ``num_parties - 1`` the graph is complete.
            seed: 32 bytes. Position ``i`` is ranked by the ``i``-th little-endian 64-bit word of its AES-CTR stream,
                ties by position.
        """
        self._num_parties = num_parties
        self._half = degree // 2
        self._is_complete = degree >= num_parties - 1
        if not self._is_complete:
            ranks = np.zeros(num_parties, np.dtype("<u8"))
            add_masks(ranks, [SignedSeed(seed)])
            self._ring = np.argsort(ranks, kind="stable")
            self._place = np.empty_like(self._ring)
            self._place[self._ring] = np.arange(num_parties)

    def matrix(self) -> NDArray[np.int16]:
        """Return everybody's neighbours: int16[num_parties, degree], rows ascending."""
        if self._is_complete:
            everybody = np.arange(self._num_parties, dtype=np.int16)
            columns = everybody[:-1]
            return columns + (columns >= everybody[:, None]).astype(np.int16)
        offsets = np.delete(np.arange(-self._half, self._half + 1), self._half)
        around = self._ring[(self._place[:, None] + offsets) % self._num_parties]
        return np.sort(around, axis=1).astype(np.int16)

    def neighbours(self, position: int) -> tuple[int, ...]:
        """Return a position's neighbours, ascending, without itself."""
        if self._is_complete:
            return (*range(position), *range(position + 1, self._num_parties))
        around = self._place[position] + np.arange(-self._half, self._half + 1)
        around = self._ring[np.delete(around, self._half) % self._num_parties]
        return tuple(np.sort(around).tolist())
