"""A device counts once in a round: its credential's subject leaves a mark that nobody can read when the round is over.

The mark is an HMAC of the subject under a key that is made for the round and lives in this object only. Marks and key
are dropped together when the round ends, so that nothing in memory says who took part in it, and nothing was ever
written down. Before a round, a subject has one place among those who wait: what it sends again takes the same place.
"""

import hmac
import secrets

from covey.types.errors import AlreadyInRoundError

__all__ = ["Participation"]

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


def already_in_round() -> AlreadyInRoundError:
    """Return the polite refusal."""
    return AlreadyInRoundError(
        "round", expected="a device once", got="the same credential again", hint="wait for this round to end"
    )
