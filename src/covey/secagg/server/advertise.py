"""Step 1 of the server: collect public keys, and tell all of U1 who is in it."""

from covey.secagg.group import Group
from covey.secagg.keys import check_public_key
from covey.secagg.messages import Advertisement, Roster
from covey.secagg.session import Session
from covey.types.errors import EnrolmentError, PublicKeyError

__all__ = ["Advertising"]


class Advertising:
    """Collects advertisements.

    It refuses what the parties would refuse: each checks the whole roster, so one bad entry would make all leave.
    """

    def __init__(self, session: Session, now_s: int) -> None:
        self._session = session
        self._now_s = now_s
        self._entries: dict[int, Advertisement] = {}
        self._seen: set[bytes] = set()

    def accept(self, index: int, message: bytes) -> None:
        """Keep an advertisement.

        Raises:
            SecAggMessageError: malformed.
            PublicKeyError: a key that is not canonical, that was advertised before, or that its party did not sign.
            EnrolmentError: an identity that is not certified, has expired, or is in the group already.
        """
        entry = Advertisement.decode(self._session, index, message)
        keys = {entry.cipher_key, entry.mask_key}
        for key in keys:
            check_public_key(key)
        if len(keys) != 2 or keys & self._seen:
            raise PublicKeyError("advertisement", expected="two keys that nobody else has", got="a repeated one")
        if entry.certificate is not None:
            entry.verify(self._session, self._now_s)
            keys.add(entry.certificate.identity_key)
            if entry.certificate.identity_key in self._seen:
                raise EnrolmentError("advertisement", expected="an identity of its own", got="a repeated one")
        self._seen |= keys
        self._entries[index] = entry

    def close(self) -> tuple[Group, dict[int, bytes]]:
        """Return the group U1 and what goes to each party: the same roster."""
        roster = Roster.of([self._entries[i] for i in sorted(self._entries)])
        return Group(self._session, roster), dict.fromkeys(self._entries, roster.encode(self._session))
