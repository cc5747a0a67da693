"""Device credentials: short-lived bearer tokens that the server can check without remembering anybody.

A token is ``base64url(payload) . base64url(HMAC-SHA256(key, label || payload))`` with the population, an expiry and a
subject, which is random or follows from an attestation. The server stores none of them. Rate limits and once-per-round
counting build on the subject.
"""

import base64
import binascii
import hmac
import os
import secrets
from pathlib import Path

import msgspec

from covey.types.errors import UnauthorizedError, UsageError

__all__ = ["Claims", "Credentials", "load_or_make_key"]

_LABEL = b"covey device credential v1\x00"
_SUBJECT_LABEL = b"covey device subject v1\x00"
_KEY_BYTES = 32


class Claims(msgspec.Struct, frozen=True, array_like=True):
    """What a credential says: whom it admits to, until when, and a pseudonym, 32 hex digits."""

    population: str
    expires_at_s: int
    subject: str


class Credentials:
    """Issues and checks credentials with one secret key."""

    def __init__(self, key: bytes, *, lifetime_s: float = 3600.0) -> None:
        """Hold ``key``, 32 random bytes; tokens live ``lifetime_s``."""
        if len(key) != _KEY_BYTES:
            raise UsageError("credential key", expected=f"{_KEY_BYTES} bytes", got=f"{len(key)} bytes")
        self._key = key
        self.lifetime_s = lifetime_s

    def subject(self, attested: bytes) -> str:
        """Return the pseudonym of whoever presented an attestation of that name: the same each time, for this key."""
        return hmac.digest(self._key, _SUBJECT_LABEL + attested, "sha256")[:16].hex()

    def issue(self, population: str, now_s: float, subject: str = "") -> str:
        """Return a new token for ``population``; without a ``subject``, for nobody who was seen before."""
        claims = Claims(population, int(now_s + self.lifetime_s), subject or secrets.token_hex(16))
        payload = msgspec.json.encode(claims)
        return f"{_text(payload)}.{_text(self._tag(payload))}"

    def population(self, token: str, now_s: float) -> str:
        """Return whom a token admits; see :meth:`claims`."""
        return self.claims(token, now_s).population

    def claims(self, token: str, now_s: float) -> Claims:
        """Return what a token says.

        Raises:
            UnauthorizedError: missing, malformed, forged or expired; which of them, it does not say.
        """
        try:
            head, _, tail = token.partition(".")
            payload, tag = _raw(head), _raw(tail)
            if not hmac.compare_digest(tag, self._tag(payload)):
                raise ValueError
            claims = msgspec.json.decode(payload, type=Claims)
            if claims.expires_at_s < now_s:
                raise ValueError
        except (ValueError, binascii.Error, msgspec.MsgspecError) as e:
            raise UnauthorizedError(
                "credential", expected="a valid credential", got="none, or one that is not valid", hint="enroll again"
            ) from e
        return claims

    def _tag(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, _LABEL + payload, "sha256")


def load_or_make_key(path: Path) -> bytes:
    """Return the key in ``path``; on first use, make one from the system's randomness, readable by its owner only."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        key = secrets.token_bytes(_KEY_BYTES)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
        return key


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
