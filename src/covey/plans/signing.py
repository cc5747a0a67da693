"""Who may tell a device what to execute: the owner of the population, by an Ed25519 signature.

The signature covers a constant label, the population and the plan's hash, so that a plan signed for one population
cannot be replayed in another. Devices pin the public key; the server holds no private key.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from covey.types.errors import PlanSignatureError, UsageError

__all__ = [
    "generate_owner_key",
    "load_private_key",
    "load_public_key",
    "private_key_pem",
    "public_key_pem",
    "sign_plan",
    "verify_plan",
]

_LABEL = b"covey plan v1\x00"


def generate_owner_key() -> Ed25519PrivateKey:
    """Return a new owner key from the operating system's randomness."""
    return Ed25519PrivateKey.generate()


def private_key_pem(key: Ed25519PrivateKey) -> bytes:
    """Encode as unencrypted PKCS#8 PEM; write it with mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_key_pem(key: Ed25519PublicKey) -> bytes:
    """Encode as PEM: what a device pins."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_private_key(pem: bytes, where: str) -> Ed25519PrivateKey:
    """Read a PEM private key.

    Raises:
        UsageError: not an Ed25519 private key.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as e:
        raise UsageError(where, expected="an Ed25519 private key in PEM", got="something else") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(where, expected="an Ed25519 private key in PEM", got=type(key).__name__)
    return key


def load_public_key(pem: bytes, where: str) -> Ed25519PublicKey:
    """Read a PEM public key.

    Raises:
        UsageError: not an Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as e:
        raise UsageError(where, expected="an Ed25519 public key in PEM", got="something else") from e
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(where, expected="an Ed25519 public key in PEM", got=type(key).__name__)
    return key


def sign_plan(key: Ed25519PrivateKey, population: str, plan_hash: str) -> bytes:
    """Sign that ``population`` may execute the plan with this hash; 64 bytes."""
    return key.sign(_statement(population, plan_hash))


def verify_plan(key: Ed25519PublicKey, population: str, plan_hash: str, signature: bytes) -> None:
    """Check the signature.

    Raises:
        PlanSignatureError: it is not this owner's signature for this population and plan.
    """
    try:
        key.verify(signature, _statement(population, plan_hash))
    except InvalidSignature as e:
        raise PlanSignatureError(
            f"plan {plan_hash[:12]}… for population {population!r}",
            expected="a signature by the pinned owner key",
            got="another key's signature, or one for another plan or population",
            hint="check --owner-key; if the owner changed keys, install the new one by a trusted way",
        ) from e


def _statement(population: str, plan_hash: str) -> bytes:
    raw = population.encode()
    return _LABEL + len(raw).to_bytes(4, "big") + raw + bytes.fromhex(plan_hash)
