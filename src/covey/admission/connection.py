"""A connection that cannot be held for nothing: deadlines on a request's head and on a download, and a bound on all.

uvicorn bounds how long a connection may idle between two requests. What it leaves open is bounded here: one that never
begins a request or drips its head, one that goes on with a body after the answer, and one that does not read.
"""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from covey.admission.guard import error_body, too_slow
from covey.admission.limits import Limits
from covey.types.errors import CoveyError, WireError

__all__ = ["protocol_with"]

_GOODBYE_S = 0.25
"""How long an answer that ends a connection may take to leave."""


def protocol_with(limits: Limits) -> type[asyncio.Protocol]:
    """Return the class of connections that keep to ``limits``, for uvicorn's ``http``."""
    return type("BoundedConnection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    limits: ClassVar[Limits]
    _deadline: asyncio.TimerHandle | None = None
    _has_begun = False
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            transport.abort()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_begun = True
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._has_begun = False
        self._unsent = 0
        if self._is_answering():  # the next request had come already
            self._disarm()

    def timeout_keep_alive_handler(self) -> None:
        # The answer may be a download on a slow line: it goes on while it moves.
        left = self.transport.get_write_buffer_size()
        least = self.limits.min_bytes_per_s * self.timeout_keep_alive
        if left and (not self._unsent or self._unsent - left >= least):
            self._unsent = left
            again = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
            self.timeout_keep_alive_task = again
            return
        super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._end_with(WireError("request", expected="HTTP/1.1", got="something else"))

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Hold the time while something is awaited that is not a body: a head, or the rest of a refused body."""
        if self._is_answering():
            self._disarm()
        else:
            self._arm()

    def _arm(self) -> None:
        if self._deadline is None:
            # The rest of a body that was refused is let in for a while: a client that is cut may miss the answer.
            is_body = self.conn.their_state is h11.SEND_BODY
            timeout_s = self.limits.body_timeout_s if is_body else self.limits.header_timeout_s
            self._deadline = self.loop.call_later(timeout_s, self._cut)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._has_begun and self.conn.our_state is h11.IDLE:
            self._end_with(too_slow("head"))
        else:
            self.transport.abort()

    def _end_with(self, error: CoveyError) -> None:
        """Answer with an error and close, whatever the client sends next."""
        if self._is_answering():  # the request at hand is over as well
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            data = error_body(error)
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(data)),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=error.http_status, headers=headers),
                h11.Data(data=data),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()
        self.loop.call_later(_GOODBYE_S, self.transport.abort)
