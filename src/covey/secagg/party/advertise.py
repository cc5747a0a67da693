"""Step 1 of a party: draw two key pairs and advertise the public halves, signed where the server may be active."""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from covey.secagg.identity import Identity
from covey.secagg.keys import KEY_BYTES, public_key
from covey.secagg.messages import Advertisement
from covey.secagg.session import Session

__all__ = ["Advertised", "advertise"]


@dataclass(frozen=True, slots=True, repr=False)
class Advertised:
    """After step 1.

    Attributes:
        cipher: the private key for sealing shares; gone after step 2.
        mask_private: the private key for masks, 32 raw bytes; it will be shared, and is gone after step 3.
        own: what was advertised.
    """

    cipher: X25519PrivateKey
    mask_private: bytes
    own: Advertisement


def advertise(
    session: Session, index: int, identity: Identity | None, randomness: Callable[[int], bytes]
) -> tuple[Advertised, bytes]:
    """Return the state after step 1 and the message. Two key pairs: one seals, the other one masks and is shared."""
    cipher = X25519PrivateKey.from_private_bytes(randomness(KEY_BYTES))
    mask_private = randomness(KEY_BYTES)
    keys = (cipher.public_key().public_bytes_raw(), public_key(mask_private))
    own = Advertisement(index, *keys)
    if identity is not None:
        unsigned = Advertisement(index, *keys, identity.certificate)
        own = Advertisement(index, *keys, identity.certificate, identity.key.sign(unsigned.statement(session)))
    return Advertised(cipher, mask_private, own), own.encode(session)
