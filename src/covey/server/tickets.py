"""The requests that wait: each has a ticket, and one answer to come. One event loop."""

import asyncio
import secrets
from typing import Any

from covey.types.errors import CoveyError

__all__ = ["Answer", "Tickets", "new_token"]

Answer = asyncio.Future[Any]


def new_token() -> str:
    """Return a name that nobody can guess."""
    return secrets.token_urlsafe(24)


class Tickets:
    """Law: an answer reaches whoever still waits for it, once."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._waiting: dict[str, Answer] = {}
        self._polls: dict[str, Answer] = {}
        self._session_of: dict[str, str] = {}

    def take(self, *, session: str = "", poll: bool = False) -> tuple[str, Answer]:
        """Return a new ticket and its answer to come.

        Args:
            session: the one that the request may end.
            poll: whether the answer may never come.
        """
        ticket, answer = new_token(), asyncio.get_running_loop().create_future()
        self._waiting[ticket] = answer
        if session:
            self._session_of[ticket] = session
        if poll:
            self._polls[ticket] = answer
        return ticket, answer

    def drop(self, ticket: str) -> None:
        """Stop waiting; the answer goes nowhere when it comes."""
        self._waiting.pop(ticket, None)
        self._polls.pop(ticket, None)

    def session(self, ticket: str) -> str:
        """Return, once, which session a ticket's request may have ended, or an empty text."""
        return self._session_of.pop(ticket, "")

    def waiting(self, ticket: str) -> Answer | None:
        """Return, once, the answer that somebody still waits for."""
        answer = self._waiting.pop(ticket, None)
        return None if answer is None or answer.done() else answer

    def fail_polls(self, error: CoveyError) -> None:
        """Answer all polls with an error."""
        for answer in self._polls.values():
            if not answer.done():
                answer.set_exception(error)
