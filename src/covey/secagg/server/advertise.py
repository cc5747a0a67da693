"""Step 1 of the server: collect public keys, and tell all of U1 who is in it."""

from covey.secagg.group import Group
from covey.secagg.keys import check_public_key
from covey.secagg.messages import Advertisement, Roster
from covey.secagg.session import Session
from covey.types.errors import PublicKeyError

__all__ = ["Advertising"]


class Advertising:
    """Collects advertisements. A key that was seen already is refused, so that one party cannot pose as two."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._entries: dict[int, Advertisement] = {}
        self._keys: set[bytes] = set()

    def accept(self, index: int, message: bytes) -> None:
        """Keep an advertisement.

        Raises:
            SecAggMessageError: malformed.
            PublicKeyError: a key that is not canonical, or that somebody advertised before.
        """
        entry = Advertisement.decode(self._session, index, message)
        keys = {entry.cipher_key, entry.mask_key}
        for key in keys:
            check_public_key(key)
        if len(keys) != 2 or keys & self._keys:
            raise PublicKeyError("advertisement", expected="two keys that nobody else has", got="a repeated one")
        self._keys |= keys
        self._entries[index] = entry

    def close(self) -> tuple[Group, dict[int, bytes]]:
        """Return the group U1 and what goes to each party: the same roster."""
        roster = Roster.of([self._entries[i] for i in sorted(self._entries)])
        return Group(self._session, roster), dict.fromkeys(self._entries, roster.encode(self._session))
