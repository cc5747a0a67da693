"""The key by which a server publishes, and the owner's word that it may.

::

    DIR/release.key       the release key (mode 0600); the owner's own key is never here
    DIR/delegation.json   the owner's delegation to it; renewed by replacing the file, no restart is needed
    DIR/owner.pub         the owner's public key, so that the server notices a delegation that devices would refuse
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from covey.plans.release import Delegation, decode_delegation, verify_delegation
from covey.plans.signing import load_private_key, load_public_key
from covey.types.errors import ReleaseRefusedError

__all__ = ["DELEGATION_FILE", "KEY_FILE", "ReleaseKey", "Signer"]

KEY_FILE, DELEGATION_FILE = "release.key", "delegation.json"

READY = "on"


@dataclass(frozen=True, slots=True)
class Signer:
    """A key and its delegation, as they are now; ``state`` is ``on``, or why there are no releases."""

    state: str
    key: Ed25519PrivateKey | None = None
    delegation: Delegation | None = None


class ReleaseKey:
    """The files of a server's directory, read when they are needed: the delegation may be renewed at any time."""

    def __init__(self, directory: Path | None, population: str, owner_file: str = "owner.pub") -> None:
        """Look into ``directory``; files that are not there, or no directory, mean that nothing is released."""
        self._owner_file = owner_file
        self._directory = directory
        self._population = population

    def signer(self, now_s: float) -> Signer:
        """Return the key and the delegation, or why there are none: training goes on either way.

        The state is ``on``, ``no_release_key``, ``no_delegation``, ``delegation_expired`` or ``delegation_refused`` (by
        the owner's key, for another population or another release key).

        Raises:
            UsageError: a file that holds no key.
        """
        secret, word, owner = (self._read(n) for n in (KEY_FILE, DELEGATION_FILE, self._owner_file))
        if secret is None:
            return Signer("no_release_key")
        if word is None:
            return Signer("no_delegation")
        key = load_private_key(secret, KEY_FILE)
        try:
            delegation = decode_delegation(word)
        except ReleaseRefusedError:
            return Signer("delegation_refused")
        if (
            delegation.population != self._population
            or delegation.release_key != key.public_key().public_bytes_raw().hex()
        ):
            return Signer("delegation_refused")
        if owner is not None and not self._holds(load_public_key(owner, self._owner_file), delegation):
            return Signer("delegation_refused")
        if now_s >= delegation.expires_at:
            return Signer("delegation_expired")
        return Signer(READY, key, delegation)

    def _holds(self, owner: Ed25519PublicKey, delegation: Delegation) -> bool:
        try:  # whether it has expired is asked apart
            verify_delegation(owner, delegation, population=self._population, now_s=0.0)
        except ReleaseRefusedError:
            return False
        return True

    def _read(self, name: str) -> bytes | None:
        if self._directory is None:
            return None
        try:
            return (self._directory / name).read_bytes()
        except OSError:
            return None
