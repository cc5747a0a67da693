"""Who gets a certificate: one for each attestation, and nothing about the device in it."""

import threading
import time
from collections.abc import Callable

from covey.admission.verifier import Verifier
from covey.secagg import EnrolmentAuthority
from covey.types.errors import AttestationError, BusyError, NotFoundError, WireError
from covey.wire.messages import Certified, Certify

__all__ = ["Registrar"]

_KEY_BYTES = 32
_STEPS_IN_LIFETIME = 6
"""Expiries are rounded up to a sixth of the lifetime: everybody in a group sees them, and the hour must name nobody."""


class Registrar:
    """Certifies identity keys for one population. Thread-safe.

    Laws: an attestation gives a certificate for one key, as long as it could be presented again; asking again for that
    key gives the same certificate, so a lost answer costs nothing. What it remembers for that is in memory and
    bounded: it refuses rather than forgets. After a restart an unexpired attestation is good once more.
    """

    def __init__(
        self,
        authority: EnrolmentAuthority,
        population: str,
        verifier: Verifier,
        *,
        lifetime_s: int = 3600,
        max_remembered: int = 1_000_000,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Begin without memory.

        Args:
            authority: holds the key that applications pin.
            population: whose devices it certifies.
            verifier: who is a device.
            lifetime_s: of a certificate, at least; rounding adds up to a sixth.
            max_remembered: how many attestations are remembered at once.
            now_s: the time of day; certificates and attestations are held against it.
        """
        self._authority, self._population, self._verifier = authority, population, verifier
        self._step_s = max(1, lifetime_s // _STEPS_IN_LIFETIME)
        self._lifetime_s, self._max_remembered, self._now_s = lifetime_s, max_remembered, now_s
        self._given: dict[bytes, tuple[bytes, int, float]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._given)

    def certify(self, message: Certify) -> Certified:
        """Return a certificate.

        Raises:
            NotFoundError: another population.
            WireError: no Ed25519 key.
            AttestationError: refused, or the attestation has given a certificate for another key.
            BusyError: too many attestations are remembered.
        """
        if message.population != self._population:
            raise NotFoundError(
                "population", expected="the one that this authority certifies", got="another", hint="check --population"
            )
        key = _key(message.identity_key)
        now_s = self._now_s()
        attested = self._verifier.verify(message.attestation, self._population, now_s)
        expires_at = self._remembered(attested.name, key, attested.expires_at_s, now_s)
        certificate = self._authority.certify(key, expires_at)
        return Certified(expires_at=expires_at, signature=certificate.signature.hex())

    def _remembered(self, name: bytes, key: bytes, until_s: float, now_s: float) -> int:
        """Return when the certificate for this attestation and key expires; note it if it is the first."""
        with self._lock:
            given = self._given.get(name)
            if given is not None and given[2] > now_s:
                if given[0] != key or given[1] <= now_s:
                    raise AttestationError(
                        "attestation",
                        expected="one that has given no certificate yet",
                        got="one that is used up",
                        hint="get a new one from the application",
                    )
                return given[1]
            expires_at = (int(now_s) + self._lifetime_s + self._step_s - 1) // self._step_s * self._step_s
            if until_s > now_s:  # else it cannot come again: with an open door there is nothing to remember
                self._make_room(now_s)
                self._given[name] = (key, expires_at, until_s)
            return expires_at

    def _make_room(self, now_s: float) -> None:
        if len(self._given) < self._max_remembered:
            return
        self._given = {k: v for k, v in self._given.items() if v[2] > now_s}
        if len(self._given) >= self._max_remembered:
            error = BusyError(
                "authority", expected="room to remember one more attestation", got="none", hint="come again later"
            )
            error.retry_after_s = max(1.0, min(until_s for _, _, until_s in self._given.values()) - now_s)
            raise error


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise WireError("identity_key", expected=f"{_KEY_BYTES} bytes in hex", got="something else")
    return key
