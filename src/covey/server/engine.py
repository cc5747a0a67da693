"""Routing between roles, with no opinion on where a role lives: the same roles run under HTTP and in a simulation."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from covey.server.messages import Envelope

__all__ = ["Engine", "Role"]


class Role(Protocol):
    """A sans-I/O role: it owns its state, and time and messages come in as arguments."""

    def receive(self, message: Any, now_s: float) -> list[Envelope]:
        """Take one message; return what it causes."""
        ...

    def next_deadline_s(self) -> float | None:
        """Return when :meth:`tick` has something to do, or None."""
        ...

    def tick(self, now_s: float) -> list[Envelope]:
        """Do what is due; return what it causes."""
        ...


class Engine:
    """Delivers messages to the roles it holds until all is quiet, and returns those for anybody else.

    Not thread-safe: one thread drives it.
    """

    def __init__(self, roles: Mapping[str, Role]) -> None:
        """Hold ``roles`` by address."""
        self._roles = dict(roles)

    def deliver(self, envelopes: list[Envelope], now_s: float) -> list[Envelope]:
        """Route ``envelopes`` and everything they cause; return what is addressed elsewhere, in order."""
        pending, outside = deque(envelopes), []
        while pending:
            envelope = pending.popleft()
            role = self._roles.get(envelope.to)
            if role is None:
                outside.append(envelope)
            else:
                pending.extend(role.receive(envelope.message, now_s))
        return outside

    def send(self, to: str, message: Any, now_s: float) -> list[Envelope]:
        """Route one message; see :meth:`deliver`."""
        return self.deliver([Envelope(to, message)], now_s)

    def next_deadline_s(self) -> float | None:
        """Return the earliest deadline of any role, or None."""
        deadlines = [d for role in self._roles.values() if (d := role.next_deadline_s()) is not None]
        return min(deadlines, default=None)

    def tick(self, now_s: float) -> list[Envelope]:
        """Let every role do what is due; return what is addressed elsewhere."""
        return self.deliver([e for role in self._roles.values() for e in role.tick(now_s)], now_s)
