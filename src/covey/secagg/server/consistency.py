"""Step 4 of the server, active mode only: show every survivor that the others were told the same."""

from covey.secagg.encoding import bitmap
from covey.secagg.group import Group
from covey.secagg.identity import verify
from covey.secagg.messages import Signature, Signatures, transcript
from covey.types.errors import ConsistencyError

__all__ = ["Agreeing"]


class Agreeing:
    """Collects the survivors' signatures under the transcript."""

    def __init__(self, group: Group, sharers: frozenset[int], survivors: frozenset[int]) -> None:
        self._group = group
        self._statement = transcript(
            group.session, group.scope.root, bitmap(sharers, group.size), bitmap(survivors, group.size)
        )
        self._signatures: dict[int, bytes] = {}
        self._signers: list[int] = []

    def accept(self, position: int, message: bytes) -> None:
        """Keep a signature. It is checked here too, so that one broken party does not make all others refuse.

        Raises:
            SecAggMessageError: malformed.
            ConsistencyError: not the party's signature under what it was told.
        """
        entry = self._group.entry(position)
        signature = Signature.decode(self._group.session, entry.index, message).signature
        assert entry.certificate is not None  # the roster of an active session has one in every entry
        error = ConsistencyError("signature", expected="one under the same transcript", got="another")
        verify(entry.certificate.identity_key, signature, self._statement, error)
        self._signatures[entry.index] = signature
        self._signers.append(position)

    def close(self) -> dict[int, bytes]:
        """Return what goes to each of those who signed, by position: all signatures."""
        message = Signatures(tuple(sorted(self._signatures.items()))).encode(self._group.session)
        return dict.fromkeys(self._signers, message)
