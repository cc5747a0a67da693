"""Step 2 of the server: route sealed shares, which it cannot read."""

from covey.secagg.group import Group
from covey.secagg.messages import Delivery, Shares, bitmap
from covey.types.errors import ThresholdError

__all__ = ["Sharing"]


class Sharing:
    """Collects sealed shares and commitments from U1; who sends them is U2."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.neighbours = [group.graph.neighbours(p) for p in range(group.size)]
        self.commitments: dict[int, bytes] = {}
        self._sealed: dict[int, tuple[bytes, ...]] = {}

    def accept(self, position: int, message: bytes) -> None:
        """Keep a party's shares until they are delivered.

        Raises:
            SecAggMessageError: malformed.
        """
        group = self.group
        index = group.indices[position]
        shares = Shares.decode(group.session, index, message, len(self.neighbours[position]))
        self.commitments[position] = shares.commitment
        self._sealed[position] = shares.sealed

    def close(self) -> dict[int, bytes]:
        """Return what goes to each of U2, by position, and forget the sealed shares.

        Raises:
            ThresholdError: a party of U2 has fewer than ``t`` holders of its secrets left, itself included.
        """
        group, sealed = self.group, self._sealed
        sharers = bitmap(sealed, group.size)
        out: dict[int, bytes] = {}
        inbox: dict[int, list[bytes]] = {p: [] for p in sealed}
        for sender in sorted(sealed):  # ascending, so every inbox is in the order of its owner's neighbours
            for receiver, share in zip(self.neighbours[sender], sealed[sender], strict=True):
                if receiver in inbox:
                    inbox[receiver].append(share)
        for p, shares in inbox.items():
            if len(shares) + 1 < group.session.threshold:
                raise ThresholdError("shares", expected=f"{group.session.threshold} holders", got=str(len(shares) + 1))
            out[p] = Delivery(group.indices[p], sharers, tuple(shares)).encode(group.session)
        self._sealed = {}
        return out
