"""A device counts once in a round: its credential's subject leaves a mark that nobody can read when the round is over.

The mark is an HMAC of the subject under a key that is made for the round and lives in this object only. Marks and key
are dropped together when the round ends, so that nothing in memory says who took part in it, and nothing was ever
written down. Before a round, a subject has one place among those who wait: what it sends again takes the same place.

In asynchronous aggregation (:class:`Aboard`) sessions outlive a buffer, so that a mark lasts until its session has
ended and, where it was counted, until the buffer with it is committed.
"""

import hmac
import secrets

from covey.types.errors import AlreadyInRoundError

__all__ = ["Aboard", "Participation", "already_in_round"]

_LABEL = b"covey once in a round v1\x00"
_KEY_BYTES = 32


class Participation:
    """Who waits, by subject, and who is in the present round, by mark. Laws: one place each, and one session each."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._ticket_of: dict[str, str] = {}
        self._subject_of: dict[str, str] = {}
        self._round = ""
        self._key = b""
        self._marks: set[bytes] = set()

    def __repr__(self) -> str:
        """Show numbers only."""
        return f"Participation({len(self._ticket_of)} wait, {len(self._marks)} take part)"

    def arrived(self, ticket: str, subject: str) -> str:
        """Give ``subject`` a place; return the ticket that had it before, or an empty text."""
        former = self._ticket_of.pop(subject, "")
        self._subject_of.pop(former, None)
        self._ticket_of[subject], self._subject_of[ticket] = ticket, subject
        return former

    def left(self, ticket: str) -> str:
        """Free the place of a ticket that was answered or given up; return whose it was, or an empty text."""
        subject = self._subject_of.pop(ticket, "")
        self._ticket_of.pop(subject, None)
        return subject

    def admit(self, round_name: str, subject: str) -> None:
        """Let ``subject`` take part in a round; the first of a new round ends the one before.

        Args:
            round_name: of one attempt at a round, and its phase.
            subject: of a device's credential.

        Raises:
            AlreadyInRoundError: it does already.
        """
        if round_name != self._round:
            self.end()
            self._round, self._key = round_name, secrets.token_bytes(_KEY_BYTES)
        mark = hmac.digest(self._key, _LABEL + subject.encode(), "sha256")
        if mark in self._marks:
            raise already_in_round()
        self._marks.add(mark)

    def end(self) -> None:
        """Forget the round: who was in it can no longer be asked, or found out."""
        self._round, self._key, self._marks = "", b"", set()


class Aboard:
    """Who trains for a buffer, or is counted in one that is not committed. Law: at most once in a commit."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._until_s: dict[str, float] = {}  # by session, in the order in which their time is up
        self._mark_of: dict[str, bytes] = {}
        self._training: set[bytes] = set()
        self._counted: dict[bytes, int] = {}  # the number of the buffer

    def __repr__(self) -> str:
        """Show numbers only."""
        return f"Aboard({len(self._training)} train, {len(self._counted)} are counted)"

    def has(self, subject: str, now_s: float) -> bool:
        """Return whether a subject trains or is counted."""
        while self._until_s and next(iter(self._until_s.values())) <= now_s:
            self._left(next(iter(self._until_s)))
        mark = self._mark(subject)
        return mark in self._training or mark in self._counted

    def embark(self, session: str, subject: str, until_s: float, now_s: float) -> None:
        """Let a subject begin a session that lasts to ``until_s`` at most.

        Raises:
            AlreadyInRoundError: it trains, or is counted, already.
        """
        if self.has(subject, now_s):
            raise already_in_round()
        if not (self._training or self._counted):
            self._key = secrets.token_bytes(_KEY_BYTES)
        mark = self._mark(subject)
        self._until_s[session], self._mark_of[session] = until_s, mark
        self._training.add(mark)

    def landed(self, session: str, number: int) -> None:
        """Note that a session has ended, counted in the buffer ``number``; 0: in none. A round's session is ignored."""
        if (mark := self._left(session)) and number:
            self._counted[mark] = number

    def committed(self, number: int) -> None:
        """Forget who was counted in a buffer."""
        self._counted = {mark: n for mark, n in self._counted.items() if n > number}

    def end(self) -> None:
        """Forget who was counted: there is no buffer any more."""
        self._counted = {}

    def _left(self, session: str) -> bytes:
        mark = self._mark_of.pop(session, b"")
        self._until_s.pop(session, None)
        self._training.discard(mark)
        return mark

    def _mark(self, subject: str) -> bytes:
        return hmac.digest(self._key, _LABEL + subject.encode(), "sha256")


def already_in_round() -> AlreadyInRoundError:
    """Return the polite refusal."""
    return AlreadyInRoundError(
        "round", expected="a device once", got="the same credential again", hint="wait for this round to end"
    )
