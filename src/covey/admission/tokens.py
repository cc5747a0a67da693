"""Attestation tokens: what the application's backend signs for an installation that it believes in.

::

    token = base64url(payload) . base64url(Ed25519(key, "covey attestation v1" 0x00 | payload))
    payload = JSON [audience, population, expires_at, nonce]

The backend decides by its own means (an account, a platform's attestation) who gets one, and how many: every token is
one device to the server, and one certificate from the authority. It says nothing of the device but a nonce.
"""

import base64
import binascii
import hashlib
import secrets

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from covey.admission.verifier import Attested
from covey.types.errors import AttestationError, UsageError

__all__ = ["AUDIENCES", "TokenVerifier", "issue_token"]

AUDIENCES = ("server", "authority")
_LABEL = b"covey attestation v1\x00"
_MOST_CHARS = 4096


class _Payload(msgspec.Struct, frozen=True, array_like=True):
    audience: str
    population: str
    expires_at: int
    nonce: str


def issue_token(
    key: Ed25519PrivateKey, *, audience: str, population: str, expires_at: int, nonce: str | None = None
) -> str:
    """Return a token, in the application's backend.

    Args:
        key: the backend's; server and authority pin its public half.
        audience: ``server``, for a credential, or ``authority``, for an identity certificate.
        population: whom the device may join.
        expires_at: seconds since 1970; until then it may be presented.
        nonce: unique for each token; None draws one. Must say nothing of the person or the device.

    Raises:
        UsageError: another audience.

    Example:
        >>> from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        >>> key = Ed25519PrivateKey.generate()
        >>> token = issue_token(key, audience="server", population="keyboard", expires_at=2_000_000_000)
        >>> verifier = TokenVerifier(key.public_key().public_bytes_raw(), "server")
        >>> len(verifier.verify(token, "keyboard", 1_900_000_000.0).name)
        32
    """
    if audience not in AUDIENCES:
        raise UsageError("audience", expected=" or ".join(AUDIENCES), got=audience)
    payload = msgspec.json.encode(_Payload(audience, population, expires_at, nonce or secrets.token_hex(16)))
    return f"{_text(payload)}.{_text(key.sign(_LABEL + payload))}"


class TokenVerifier:
    """Accepts tokens by one backend, for one audience. Keeps nothing: who presents a token twice has one name."""

    def __init__(self, key: bytes, audience: str) -> None:
        """Pin the backend's Ed25519 public key, 32 raw bytes."""
        self._key = Ed25519PublicKey.from_public_bytes(key)
        self._audience = audience

    def verify(self, attestation: str, population: str, now_s: float) -> Attested:
        """See :class:`covey.admission.verifier.Verifier`.

        Raises:
            AttestationError: none, malformed, forged, expired, or for others; which of them, it does not say.
        """
        try:
            if len(attestation) > _MOST_CHARS:
                raise ValueError
            head, _, tail = attestation.partition(".")
            payload = _raw(head)
            self._key.verify(_raw(tail), _LABEL + payload)
            claims = msgspec.json.decode(payload, type=_Payload)
            wanted = (self._audience, population)
            if (claims.audience, claims.population) != wanted or now_s >= claims.expires_at:
                raise ValueError
        except (InvalidSignature, ValueError, binascii.Error, msgspec.MsgspecError) as e:
            raise AttestationError(
                "attestation",
                expected="a valid token of the application's backend",
                got="none, or one that is not valid here and now",
                hint="get a new one from the application",
            ) from e
        # Of the payload, not of the text: the same token in another spelling is the same token.
        return Attested(hashlib.sha256(_LABEL + payload).digest(), float(claims.expires_at))


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
