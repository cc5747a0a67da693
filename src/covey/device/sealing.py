"""Encryption at rest: each record is sealed with AES-256-GCM under a key that the system's keyring keeps.

It protects a copy of the file (a stolen disk, a backup) from whoever has no access to the person's keyring. It does
not protect against a program that runs as that person. Names of collections, the number, size and times of examples
stay readable.
"""

import base64
import contextlib
import os
from collections.abc import Iterator
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from covey.types.errors import MissingExtraError, StoreSealedError

__all__ = ["KeySource", "Sealer", "SystemKeyring", "new_key"]

_NONCE_BYTES = 12
_SERVICE = "covey example store"
_LABEL = b"covey example v1\x00"


class KeySource(Protocol):
    """Where keys are kept, by name."""

    def get(self, name: str) -> bytes | None:
        """Return the key of that name; None if there is none. Raises StoreSealedError if it cannot be asked for."""
        ...

    def put(self, name: str, key: bytes) -> None:
        """Keep a key. Raises StoreSealedError if that fails."""
        ...

    def forget(self, name: str) -> None:
        """Delete a key; nothing happens if there is none."""
        ...


class SystemKeyring:
    """The keyring of the person's session, through the package ``keyring`` (the extra ``keyring``)."""

    def get(self, name: str) -> bytes | None:
        """See :class:`KeySource`."""
        with _keyring_errors() as keyring:
            text = keyring.get_password(_SERVICE, name)
        return None if text is None else base64.b64decode(text)

    def put(self, name: str, key: bytes) -> None:
        """See :class:`KeySource`."""
        with _keyring_errors() as keyring:
            keyring.set_password(_SERVICE, name, base64.b64encode(key).decode())
        if self.get(name) != key:  # a backend that forgets at once exists: keyring.backends.null
            raise _no_keyring("one that does not keep what it is given")

    def forget(self, name: str) -> None:
        """See :class:`KeySource`."""
        with _keyring_errors() as keyring:
            if keyring.get_password(_SERVICE, name) is not None:
                keyring.delete_password(_SERVICE, name)


class Sealer:
    """Seals and opens under one key. Safe to share between threads.

    Nonces are random: one key is good for 2**32 records.
    """

    def __init__(self, key: bytes) -> None:
        """Take a key of 32 bytes."""
        self._cipher = AESGCM(key)

    def seal(self, plain: bytes, context: str) -> bytes:
        """Return nonce and ciphertext; it opens in the same ``context`` only."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, _LABEL + context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """Return what was sealed.

        Raises:
            StoreSealedError: another key, another context, or changed bytes.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _LABEL + context.encode())
        except (InvalidTag, ValueError) as e:
            raise StoreSealedError(
                "example store", expected="a record sealed under its key", got="another key, or changed bytes"
            ) from e


def new_key() -> bytes:
    """Return a new key from the operating system's randomness."""
    return AESGCM.generate_key(256)


@contextlib.contextmanager
def _keyring_errors() -> Iterator[Any]:
    """Yield the package ``keyring``, and turn its errors into Covey's."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError as e:
        raise MissingExtraError(
            "encrypted example store",
            expected="the package keyring",
            got="no such package",
            hint="pip install 'covey[keyring]'",
        ) from e
    try:
        yield keyring
    except KeyringError as e:
        raise _no_keyring(type(e).__name__) from e


def _no_keyring(got: str) -> StoreSealedError:
    return StoreSealedError(
        "system keyring",
        expected="a keyring that keeps the key",
        got=got,
        hint="unlock the keyring of your session; without a key nothing is stored in an encrypted store",
    )
