"""Step 2 of the server: route sealed shares, which it cannot read."""

import numpy as np

from covey.secagg.encoding import bitmap
from covey.secagg.group import Group
from covey.secagg.keys import SEALED_BYTES
from covey.secagg.messages import Delivery, Shares
from covey.types.errors import ThresholdError

__all__ = ["Sharing"]


class Sharing:
    """Collects sealed shares and commitments from U1; who sends them is U2.

    Attributes:
        group: U1.
        neighbours: int16[parties, degree], rows ascending.
        commitments: to self seeds, by position.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.neighbours = group.graph.matrix()
        self.commitments: dict[int, bytes] = {}
        self._sealed = np.empty((*self.neighbours.shape, SEALED_BYTES), np.uint8)

    def accept(self, position: int, message: bytes) -> None:
        """Keep a party's shares until they are delivered.

        Raises:
            SecAggMessageError: malformed.
        """
        shares = Shares.decode(self.group.session, self.group.indices[position], message, self.neighbours.shape[1])
        self.commitments[position] = shares.commitment
        self._sealed[position] = np.frombuffer(shares.sealed, np.uint8).reshape(-1, SEALED_BYTES)

    def close(self) -> dict[int, bytes]:
        """Return what goes to each of U2, by position, and forget the sealed shares.

        Raises:
            ThresholdError: a party of U2 has fewer than ``t`` holders of its secrets left, itself included.
        """
        group, bits = self.group, bitmap(self.commitments, self.group.size)
        shared = np.zeros(group.size, bool)
        shared[list(self.commitments)] = True
        arriving = inbound(self.neighbours)
        by_edge, out = self._sealed.reshape(-1, SEALED_BYTES), {}
        for p in sorted(self.commitments):
            edges = arriving[p][shared[self.neighbours[p]]]
            if len(edges) + 1 < group.session.threshold:
                raise ThresholdError("shares", expected=f"{group.session.threshold} holders", got=str(len(edges) + 1))
            out[p] = Delivery(group.indices[p], bits, by_edge[edges].tobytes()).encode(group.session)
        self._sealed = np.empty((0, 0, SEALED_BYTES), np.uint8)
        return out


def inbound(
    receivers: "np.ndarray[tuple[int, int], np.dtype[np.int16]]",
) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """Return for each party the flat places, in the matrix of everybody's receivers, where it is one: by sender.

    The relation is symmetric and regular, so a stable sort by receiver lists every party's senders in ascending order,
    equally many for each.
    """
    return np.argsort(receivers, axis=None, kind="stable").reshape(receivers.shape)
