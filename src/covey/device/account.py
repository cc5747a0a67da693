"""The device's credential with one server: asked for when needed, kept, and renewed before it ends."""

from collections.abc import Callable
from typing import TypeVar

from covey.device.home import Credential, DeviceHome
from covey.device.tokens import no_tokens
from covey.device.transport import Transport
from covey.types.clock import Clock
from covey.types.errors import UnauthorizedError
from covey.wire.messages import Enroll

__all__ = ["Account"]

T = TypeVar("T")

_LIFETIME_USED = 0.9
"""A credential is renewed after this fraction of its lifetime, before the server refuses it."""


class Account:
    """One population's credential. One thread at a time."""

    def __init__(
        self,
        home: DeviceHome,
        server: str,
        population: str,
        transport: Transport,
        clock: Clock,
        on_enrolled: Callable[[], None],
        *,
        attestation: Callable[[], str] = no_tokens,
    ) -> None:
        """Prepare; nothing is sent yet. ``attestation`` returns the proof of being a device of the application."""
        self.bearer = ""
        self._renew_at_s = 0.0
        self._home, self._server, self._population = home, server, population
        self._transport, self._clock, self._on_enrolled = transport, clock, on_enrolled
        self._attestation = attestation

    def authorized(self, send: Callable[[str], T]) -> T:
        """Call ``send`` with a credential; with a new one if the server does not accept the first any more."""
        try:
            return send(self._current())
        except UnauthorizedError:
            self.bearer = ""
            self._home.forget_credential(self._server, self._population)
            return send(self._current())

    def _current(self) -> str:
        if not self.bearer and (stored := self._home.credential(self._server, self._population)) is not None:
            self.bearer, self._renew_at_s = stored.bearer, stored.renew_at_s
        if not self.bearer or self._renew_at_s < self._clock.now_s():
            answer = self._transport.enroll(Enroll(population=self._population, attestation=self._attestation()))
            self.bearer = answer.credential
            self._renew_at_s = self._clock.now_s() + _LIFETIME_USED * answer.expires_in_s
            self._home.save_credential(
                Credential(
                    server=self._server,
                    population=self._population,
                    bearer=self.bearer,
                    renew_at_s=self._renew_at_s,
                )
            )
            self._on_enrolled()
        return self.bearer
