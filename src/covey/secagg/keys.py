"""Key agreement, key derivation, and the seal on shares.

Every key is derived by HKDF-SHA256 (RFC 5869) with the session id as salt and an info that spells out what the key is
for: a label, the session id, the root of U1, the role, the ordered indices and the raw public keys. Two parties that
were told anything different derive different keys. X25519 (RFC 7748) takes canonical encodings only, and an all-zero
output, which a public key of low order gives, raises.
"""

import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from covey.types.errors import PublicKeyError, ShareError

__all__ = [
    "KEY_BYTES",
    "SEALED_BYTES",
    "SHARE_BYTES",
    "Scope",
    "agree",
    "check_public_key",
    "check_public_keys",
    "commitment",
    "expand",
    "extract",
    "hkdf",
    "open_share",
    "pair_info",
    "pair_key",
    "public_key",
    "seal_key",
    "seal_share",
    "self_key",
    "segment_seed",
]

KEY_BYTES = 32
SHARE_BYTES = 32
"""A share of one secret."""
SEALED_BYTES = 2 * SHARE_BYTES + 16
"""A share of the mask key and one of the self seed, with the AES-GCM tag."""

_PRIME = 2**255 - 19
_LOW_ORDER = frozenset(
    bytes.fromhex(h)
    for h in (
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
    )
)
"""All points of order 1, 2, 4 and 8 in their canonical encodings, on the curve and its twist."""
_LOW_ORDER_PREFIXES = np.array([int.from_bytes(k[:8], "little") for k in _LOW_ORDER], np.uint64)
_NONCE = bytes(12)  # safe: every key seals one message, in one direction, once


@dataclass(frozen=True, slots=True)
class Scope:
    """What every derivation is bound to.

    Attributes:
        session_id: 32 bytes.
        root: 32 bytes: the hash of all of U1's entries.
    """

    session_id: bytes
    root: bytes

    def info(self, label: bytes, *parts: bytes) -> bytes:
        """Return the info for one purpose: label, session and root, then parts of fixed length."""
        return b"covey secagg 1 " + label + b"\0" + self.session_id + self.root + b"".join(parts)


def extract(salt: bytes, key_material: bytes) -> bytes:
    """HKDF-Extract (RFC 5869, section 2.2) with SHA-256."""
    return hmac.digest(salt, key_material, "sha256")


def expand(pseudorandom_key: bytes, info: bytes) -> bytes:
    """HKDF-Expand (RFC 5869, section 2.3) with SHA-256, its first 32 bytes."""
    return hmac.digest(pseudorandom_key, info + b"\x01", "sha256")


def hkdf(salt: bytes, key_material: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, 32 bytes."""
    return expand(extract(salt, key_material), info)


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of 32 private bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def check_public_key(raw: bytes) -> None:
    """Raise unless ``raw`` is the one encoding of a point of large order: 32 bytes, little-endian, below 2^255 - 19.

    Raises:
        PublicKeyError: RFC 7748 would accept other encodings, but two encodings of one key would hide a repeated key.
    """
    if len(raw) != KEY_BYTES or int.from_bytes(raw, "little") >= _PRIME:
        raise PublicKeyError("public key", expected="32 bytes, a canonical encoding", got="another")
    if raw in _LOW_ORDER:
        raise PublicKeyError("public key", expected="a point of large order", got="one of low order")


def check_public_keys(keys: NDArray[np.uint8]) -> None:
    """Check many keys as :func:`check_public_key` does, and that all are different.

    Args:
        keys: uint8[keys, 32].

    Raises:
        PublicKeyError: a key that fails, or one twice.
    """
    # Few keys can fail: 255 bits reach the prime only if all of them but the lowest five are ones, and points of low
    # order and repeated keys share their first eight bytes with others. Those few are looked at one by one.
    prefixes = keys[:, :8].copy().view("<u8")[:, 0]
    suspect = (keys[:, 31] >= 0x7F) & (np.all(keys[:, 1:31] == 0xFF, axis=1) | (keys[:, 31] >= 0x80))
    suspect |= np.any(prefixes[:, None] == _LOW_ORDER_PREFIXES, axis=1)
    for key in keys[suspect]:
        check_public_key(key.tobytes())
    if len(np.unique(prefixes)) != len(keys) and len({k.tobytes() for k in keys}) != len(keys):
        raise PublicKeyError("public keys", expected="keys that are all different", got="one twice")


def agree(private: X25519PrivateKey, peer: bytes) -> bytes:
    """Return the X25519 shared secret.

    Raises:
        PublicKeyError: not canonical, or of low order (an all-zero secret).
    """
    check_public_key(peer)
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as e:
        raise PublicKeyError("public key", expected="a point of large order", got="one of low order") from e


def pair_info(scope: Scope, label: bytes, a: int, b: int, key_a: bytes, key_b: bytes) -> bytes:
    """Return the info of a key that ``a`` and ``b`` share: ordered as given, so directed keys differ by direction."""
    return scope.info(label, a.to_bytes(2, "little"), b.to_bytes(2, "little"), key_a, key_b)


def pair_key(scope: Scope, shared: bytes, a: int, b: int, key_a: bytes, key_b: bytes) -> tuple[bytes, bytes]:
    """Return what the mask seeds of a pair are expanded from: the same for both, whoever computes it."""
    if a > b:
        a, b, key_a, key_b = b, a, key_b, key_a
    return extract(scope.session_id, shared), pair_info(scope, b"pair mask", a, b, key_a, key_b)


def self_key(scope: Scope, seed: bytes, index: int, mask_key: bytes) -> tuple[bytes, bytes]:
    """Return what the seeds of a party's own mask are expanded from."""
    return extract(scope.session_id, seed), scope.info(b"self mask", index.to_bytes(2, "little"), mask_key)


def segment_seed(key: tuple[bytes, bytes], segment: int) -> bytes:
    """Return the mask seed of one segment (by its place in the layout, which the session id covers)."""
    pseudorandom_key, info = key
    return expand(pseudorandom_key, info + segment.to_bytes(2, "little"))


def commitment(scope: Scope, seed: bytes, index: int) -> bytes:
    """Return the hash by which a party commits to its self seed. It hides the seed, which has 256 bits of entropy."""
    return hashlib.sha256(scope.info(b"self seed", index.to_bytes(2, "little"), seed)).digest()


def seal_key(scope: Scope, shared: bytes, sender: int, receiver: int, key_s: bytes, key_r: bytes) -> bytes:
    """Return the AES-256 key of the one message from ``sender`` to ``receiver``; the other direction has another."""
    return hkdf(scope.session_id, shared, pair_info(scope, b"share", sender, receiver, key_s, key_r))


def seal_share(scope: Scope, key: bytes, sender: int, receiver: int, share: bytes) -> bytes:
    """Encrypt a share under a key that is used once."""
    return AESGCM(key).encrypt(_NONCE, share, _additional(scope, sender, receiver))


def open_share(scope: Scope, key: bytes, sender: int, receiver: int, sealed: bytes) -> bytes:
    """Decrypt a share.

    Raises:
        ShareError: tampered with, or not from this sender to this receiver in this session.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, sealed, _additional(scope, sender, receiver))
    except InvalidTag as e:
        raise ShareError("sealed share", expected="one from that party to this one, unchanged", got="another") from e


def _additional(scope: Scope, sender: int, receiver: int) -> bytes:
    return scope.info(b"sealed share", sender.to_bytes(2, "little"), receiver.to_bytes(2, "little"))
