"""Who may be a party against an active server: holders of short-lived, certified identity keys.

Without identities a server could play all parties but one. An enrolment authority that is not the coordinator certifies
pseudonymous Ed25519 keys for one population and a short time; the application pins the authority's public key. How the
authority decides whom to enrol (attestation, an account, one per installation) is the application's; the share of
sybils that gets through must stay below the adversary share that the plan assumes.
"""

import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from covey.types.errors import EnrolmentError

__all__ = ["Certificate", "EnrolmentAuthority", "Identity", "verify", "verify_certificate"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """The authority's word for an identity key.

    Attributes:
        identity_key: raw Ed25519 public key, 32 bytes.
        expires_at: seconds since 1970, exclusive.
        signature: the authority's, 64 bytes, over label, population, key and expiry.
    """

    identity_key: bytes
    expires_at: int
    signature: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A party's identity key with its certificate. Keep the key in memory; enrol again rather than store it."""

    key: Ed25519PrivateKey
    certificate: Certificate

    def __repr__(self) -> str:
        return "Identity(...)"


class EnrolmentAuthority:
    """Certifies identity keys for one population. Runs apart from the coordinator."""

    def __init__(self, key: Ed25519PrivateKey, population: str) -> None:
        self._key = key
        self._population = population

    def __repr__(self) -> str:
        return "EnrolmentAuthority(...)"

    @property
    def public_key(self) -> bytes:
        """What applications pin: 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def certify(self, identity_key: bytes, expires_at: int) -> Certificate:
        """Return a certificate. Whether the holder may have one is for the caller to decide before."""
        statement = _statement(self._population, identity_key, expires_at)
        return Certificate(identity_key, expires_at, self._key.sign(statement))

    def enrol(self, identity_key: Ed25519PrivateKey, expires_at: int) -> Identity:
        """Certify a key that is in this process, as simulations and tests have it."""
        return Identity(identity_key, self.certify(identity_key.public_key().public_bytes_raw(), expires_at))


def verify(identity_key: bytes, signature: bytes, message: bytes, error: Exception) -> None:
    """Check an Ed25519 signature and raise ``error`` if it is wrong."""
    try:
        Ed25519PublicKey.from_public_bytes(identity_key).verify(signature, message)
    except (InvalidSignature, ValueError) as e:
        raise error from e


def verify_certificate(certificate: Certificate, authority: bytes, population: str, now_s: int) -> None:
    """Check that the pinned authority certified this key for this population and that it has not expired.

    Raises:
        EnrolmentError: otherwise.
    """
    if now_s >= certificate.expires_at:
        raise EnrolmentError("certificate", expected="one that has not expired", got="an expired one")
    error = EnrolmentError("certificate", expected="the pinned authority's signature", got="another")
    statement = _statement(population, certificate.identity_key, certificate.expires_at)
    verify(authority, certificate.signature, statement, error)


def _statement(population: str, identity_key: bytes, expires_at: int) -> bytes:
    name = hashlib.sha256(population.encode()).digest()
    return b"covey secagg 1 enrolment\0" + name + identity_key + expires_at.to_bytes(8, "little")
