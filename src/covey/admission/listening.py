"""Listen with TLS 1.3, serve an application until told to stop, and let go of everybody then."""

import asyncio
import errno
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from covey.admission.connection import protocol_with
from covey.admission.guard import Guard
from covey.admission.limits import Limits
from covey.types.errors import PortInUseError, UsageError

__all__ = ["TlsServer", "listen", "tls_config"]

sslproto.SSLProtocol.max_size = 32 << 10
"""What asyncio reads at a time from a TLS connection, and keeps as buffers while it is open: two TLS records. Its own
value is 256 kB, which makes half a megabyte for every device that has sent an update and stays connected."""

_GRACE_S = 3
_GOODBYE_S = 0.25


class TlsServer(uvicorn.Server):
    """uvicorn that says when it is ready, and lets waiting clients go before it waits for their connections."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], on_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare.

        Args:
            config: of :func:`tls_config`.
            on_ready: called once, when connections are accepted.
            on_stop: called before connections are waited for; answers whoever waits.
        """
        super().__init__(config)
        self._on_ready, self._on_stop = on_ready, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and end what there is."""
        self._on_stop()
        cutting = asyncio.create_task(self._cut_closed())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    async def _cut_closed(self) -> None:
        """Cut connections that were closed a moment ago: an idle device does not answer the goodbye that TLS awaits."""
        while True:
            closed = [c for c in self.server_state.connections if c.transport.is_closing()]
            await asyncio.sleep(_GOODBYE_S)
            for connection in closed:
                connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; uvicorn would raise the signal again afterwards, but a wanted stop is no failure."""
        self.should_exit = True


def tls_config(app: Any, certificates: Path, limits: Limits) -> uvicorn.Config:
    """Return how an application is served: TLS 1.3, no access log, everything within ``limits``.

    Args:
        app: ASGI.
        certificates: the directory with ``server.pem`` and ``server.key``.
        limits: of requests and connections.

    Raises:
        UsageError: no certificate and key there that fit.
    """
    config = uvicorn.Config(
        Guard(app, limits),
        http=protocol_with(limits),
        ws="none",
        ssl_certfile=certificates / "server.pem",
        ssl_keyfile=certificates / "server.key",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=_GRACE_S,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as e:
        raise UsageError(f"authority {certificates}", expected="a certificate and its key", got=str(e)) from e
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        PortInUseError: something else listens there.
        UsageError: not an address of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # Named as TCP, so that asyncio sends every answer at once: of an unnamed protocol it leaves Nagle's delay on,
        # which costs each request on a connection that stays open 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as e:
        raise UsageError("host", expected="an address of this machine", got=host) from e
    # Restarting at once must work although connections of the former process linger.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as e:
        listener.close()
        if e.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{host}:{port}",
                expected="a free port",
                got="one in use",
                hint="stop the other program, or choose another port in the configuration (0 takes a free one)",
            ) from e
        raise UsageError("host", expected="an address of this machine", got=f"{host}: {e.strerror}") from e
    return listener
