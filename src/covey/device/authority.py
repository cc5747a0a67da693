"""The enrolment authority, as a device sees it: it certifies a fresh, pseudonymous key for a short time.

The authority is not the server. The application pins its public key and its address; what it answers is checked here,
so a server that stands in its place is found out at once. An identity lives in memory: a restarted device gets another.
"""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey.device.transport import HttpTransport
from covey.secagg import Certificate, Identity
from covey.secagg.identity import verify_certificate
from covey.types.errors import EnrolmentError
from covey.wire.messages import Certify

__all__ = ["PinnedAuthority"]

_LIFETIME_KEPT = 0.25
"""An identity is renewed when less than this fraction of its lifetime is left: a sum must end before it expires."""


class PinnedAuthority:
    """Gets identities from the authority of one population. One thread uses it at a time."""

    def __init__(
        self,
        url: str,
        key: bytes,
        population: str,
        *,
        ca_file: Path | None = None,
        attestation: Callable[[], str] = lambda: "",
        network: httpx.BaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: ``https://host:port``.
            key: the authority's Ed25519 public key, 32 raw bytes, that the application pins.
            population: whose devices it certifies.
            ca_file: for TLS: PEM certificates to trust, and no other; None: those of the system.
            attestation: returns the proof of being a device of the application, for this authority.
            network: instead of the real one, for tests.

        Raises:
            UsageError: not an https URL, or no usable certificate file.
        """
        self.key = key
        self._population = population
        self._attestation = attestation
        self._url, self._ca_file, self._network = url, ca_file, network
        self._connect().close()  # a bad address or file is found now, not in the first round
        self._identity: Identity | None = None
        self._renew_at_s = 0.0
        self._open: HttpTransport | None = None

    def identity(self, now_s: int) -> Identity:
        """Return an identity that is valid now and for a while.

        Args:
            now_s: seconds since 1970 by this device's clock.

        Raises:
            AttestationError, RateLimitedError, TransportError: the authority refused, or could not be reached.
            EnrolmentError: what it sent is not a certificate by the pinned authority for this population, or it has
                expired by this device's clock.
        """
        if self._identity is None or now_s >= self._renew_at_s:
            self._identity = self._certified(now_s)
        return self._identity

    def abort(self) -> None:
        """Make a call that waits in another thread fail now; from any thread."""
        if (connection := self._open) is not None:
            connection.abort()

    def _connect(self) -> HttpTransport:
        return HttpTransport(self._url, self._ca_file, network=self._network)

    def _certified(self, now_s: int) -> Identity:
        key = Ed25519PrivateKey.from_private_bytes(os.urandom(32))
        public = key.public_key().public_bytes_raw()
        # A connection of its own, not kept: it is needed once in a credential's lifetime.
        with closing(self._connect()) as connection:
            self._open = connection
            try:
                answer = connection.certify(
                    Certify(population=self._population, identity_key=public.hex(), attestation=self._attestation())
                )
            finally:
                self._open = None
        try:
            if not 0 <= answer.expires_at < 1 << 63:
                raise ValueError
            certificate = Certificate(public, answer.expires_at, bytes.fromhex(answer.signature))
        except ValueError as e:
            raise EnrolmentError("certificate", expected="a time and a signature in hex", got="something else") from e
        verify_certificate(certificate, self.key, self._population, now_s)
        self._renew_at_s = certificate.expires_at - _LIFETIME_KEPT * (certificate.expires_at - now_s)
        return Identity(key, certificate)
