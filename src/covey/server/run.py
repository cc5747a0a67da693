"""Run a server: open its directory, listen with TLS 1.3, serve until told to stop."""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from covey.server.admin import Admin, load_or_make_token
from covey.server.authority import ensure_authority
from covey.server.config import ServerConfig
from covey.server.credentials import Credentials, load_or_make_key
from covey.server.http import create_app
from covey.server.population import load_population
from covey.server.service import Service
from covey.storage.blobs import storage_errors
from covey.storage.lock import DirectoryLock
from covey.storage.sqlite import SqliteStorage
from covey.types.errors import PortInUseError, UsageError
from covey.wire.messages import RoundSummary

__all__ = ["Listening", "serve"]

_GRACE_S = 3
_GOODBYE_S = 0.25


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens, and where it resumed: the number of committed rounds."""

    url: str
    population: str
    round: int


def serve(
    directory: Path,
    config: ServerConfig,
    on_ready: Callable[[Listening], None],
    on_round: Callable[[RoundSummary], None] = lambda summary: None,
) -> None:
    """Serve until SIGINT or SIGTERM; then answer who waits, and return.

    Args:
        directory: holds the files that ``config`` names; ``authority/``, ``data/`` and the keys are made.
        config: what to serve, and how.
        on_ready: called once, when connections are accepted.
        on_round: gets every round that ends, committed or abandoned.

    Raises:
        PortInUseError: something else listens there.
        UsageError: a file or a value that cannot be used.
        StorageError: the directory cannot be written, or another server uses it.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(config.host, config.port))
        authority = directory / "authority"
        ensure_authority(authority)
        with storage_errors(f"directory {directory}"):
            key = load_or_make_key(directory / "credential.key")
            token = load_or_make_token(directory / "admin.token")
        stack.enter_context(contextlib.closing(DirectoryLock(directory / "data" / "lock")))
        storage = SqliteStorage(directory / "data", keep_checkpoints=config.keep_checkpoints)
        stack.enter_context(contextlib.closing(storage))
        record = load_population(storage, directory, config)
        service = Service(storage, config, Credentials(key), on_round=on_round)
        port = listener.getsockname()[1]
        ready = Listening(f"https://{config.host}:{port}", config.population, record.round)
        app = create_app(service, Admin(service, storage, directory, config, token).routes())
        server = _Server(_uvicorn_config(app, authority), service, lambda: on_ready(ready))
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready, and lets waiting devices go before it waits for their connections."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.stop()
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
        self.should_exit = True  # uvicorn would raise the signal again afterwards: a wanted stop is no failure


def _uvicorn_config(app: Starlette, authority: Path) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        ssl_certfile=authority / "server.pem",
        ssl_keyfile=authority / "server.key",
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
        raise UsageError(f"authority {authority}", expected="a certificate and its key", got=str(e)) from e
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    return config


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
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
