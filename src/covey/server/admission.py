"""The server's gate: who gets a credential, and how much one may ask.

Two clocks. Credentials are issued and checked by the service's own steady clock, so that a clock that is set does not
expire them; what others signed (attestation tokens) is held against the time of day. Rate limits go by the monotonic
clock.
"""

import time
from collections.abc import Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from covey.admission.attestation import load_verifier
from covey.admission.limits import Limits, RateLimiter, network_of
from covey.admission.verifier import AttestationSettings, Verifier
from covey.server.config import ServerConfig
from covey.server.credentials import Claims, Credentials
from covey.wire.messages import Enroll, Enrolled

__all__ = ["Gate"]


class Gate:
    """Admits devices. Keeps nothing but the levels of its rate limits.

    Law: one attestation is one subject, however often it is presented, in whatever process: what counts by subject
    (rate limits, once in a round) cannot be multiplied by a replay, and a device whose answer was lost asks again.
    """

    def __init__(
        self,
        credentials: Credentials,
        verifier: Verifier,
        limits: Limits,
        *,
        wall_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Put a gate together.

        Args:
            credentials: issues and checks them.
            verifier: who gets one.
            limits: how often.
            wall_s: the time of day.
            monotonic_s: a clock that only goes forward.
        """
        self._credentials, self._verifier = credentials, verifier
        self._wall_s, self._monotonic_s = wall_s, monotonic_s
        self._requests = RateLimiter(limits.credential_per_s, limits.credential_burst, limits.max_entries)
        self._enrolments = RateLimiter(limits.peer_per_s, limits.peer_burst, limits.max_entries)

    @classmethod
    def of(cls, config: ServerConfig, credentials: Credentials, directory: Path = Path()) -> "Gate":
        """Return the gate that a configuration describes; ``directory`` is where its files are.

        Raises:
            UsageError: no such verifier, or settings that it cannot work with.
        """
        settings = AttestationSettings("server", directory, config.attestation)
        return cls(credentials, load_verifier(config.enrolment, settings), config.limits)

    async def enroll(self, message: Enroll, peer: str, now_s: float) -> Enrolled:
        """Give a credential to whoever proves to be a device of the application.

        Args:
            message: what it sent, for a population that is served.
            peer: the address that it comes from.
            now_s: by the service's clock.

        Raises:
            AttestationError: refused.
            RateLimitedError: too many from this address.
        """
        self._enrolments.take(network_of(peer), self._monotonic_s())
        attested = await run_in_threadpool(
            self._verifier.verify, message.attestation, message.population, self._wall_s()
        )
        subject = self._credentials.subject(attested.name)
        token = self._credentials.issue(message.population, now_s, subject)
        return Enrolled(credential=token, expires_in_s=self._credentials.lifetime_s)

    def admit(self, token: str, now_s: float) -> Claims:
        """Return what a credential says, and count the request.

        Raises:
            UnauthorizedError: see :meth:`covey.server.credentials.Credentials.claims`.
            RateLimitedError: more requests than a device makes.
        """
        claims = self._credentials.claims(token, now_s)
        self._requests.take(claims.subject, self._monotonic_s())
        return claims
