"""U1 as both sides see it: who is at which position, who neighbours whom, and what every key is bound to."""

import hashlib

from covey.secagg.graph import Graph
from covey.secagg.keys import Scope
from covey.secagg.messages import Advertisement, Roster
from covey.secagg.session import Session

__all__ = ["Group"]


class Group:
    """The parties of U1 in the order of their indices.

    Attributes:
        session: that they are in.
        scope: session id and root of U1.
        graph: over positions.
        indices: of the parties, by position.
    """

    def __init__(self, session: Session, roster: Roster) -> None:
        self.session = session
        self.scope = Scope(session.id, roster.root(session))
        seed = hashlib.sha256(self.scope.info(b"graph")).digest()
        self.graph = Graph(len(roster.indices), session.num_neighbours, seed)
        self.indices = roster.indices
        self._roster = roster
        self._entries: dict[int, Advertisement] = {}

    @property
    def size(self) -> int:
        """The number of parties."""
        return len(self.indices)

    def entry(self, position: int) -> Advertisement:
        """Return what the party at a position advertised."""
        if position not in self._entries:
            self._entries[position] = self._roster.entry(self.session, position)
        return self._entries[position]
