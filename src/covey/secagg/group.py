"""U1 as both sides see it: who is at which position, who neighbours whom, and what every key is bound to."""

import hashlib
from dataclasses import dataclass

from covey.secagg.graph import Graph
from covey.secagg.keys import Scope
from covey.secagg.messages import Advertisement, Roster
from covey.secagg.session import Session

__all__ = ["Group"]


@dataclass(frozen=True, slots=True)
class Group:
    """The parties of U1 in the order of their indices.

    Attributes:
        session: that they are in.
        entries: what each advertised, by position.
        scope: session id and root of U1.
        graph: over positions.
    """

    session: Session
    entries: tuple[Advertisement, ...]
    scope: Scope
    graph: Graph

    @classmethod
    def of(cls, session: Session, roster: Roster) -> "Group":
        """Return the group that a roster makes."""
        scope = Scope(session.id, roster.root(session))
        seed = hashlib.sha256(scope.info(b"graph")).digest()
        return cls(session, roster.entries, scope, Graph(len(roster.entries), session.num_neighbours, seed))

    @property
    def size(self) -> int:
        """The number of parties."""
        return len(self.entries)

    def position(self, index: int) -> int | None:
        """Return a party's position, None where it is not in U1."""
        return next((p for p, e in enumerate(self.entries) if e.index == index), None)
