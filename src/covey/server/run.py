"""Run a server: open its directory, listen with TLS 1.3, serve until told to stop."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from covey.admission.listening import TlsServer, listen, tls_config
from covey.server.admin import Admin, load_or_make_token
from covey.server.admission import Gate
from covey.server.authority import ensure_authority
from covey.server.config import ServerConfig
from covey.server.credentials import Credentials, load_or_make_key
from covey.server.http import create_app
from covey.server.logs import event, logging_to
from covey.server.metrics import serve_metrics
from covey.server.population import load_population
from covey.server.service import Service
from covey.storage.blobs import storage_errors
from covey.storage.lock import DirectoryLock
from covey.storage.sqlite import SqliteStorage
from covey.wire.messages import RoundSummary

__all__ = ["Listening", "serve"]


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens, and where it resumed.

    Attributes:
        url: ``https://host:port``.
        population: whom it serves.
        round: the number of committed rounds.
        resting: each task that waits for the operator, with its state and, where a round was its last, why.
    """

    url: str
    population: str
    round: int
    resting: tuple[str, ...] = ()


def serve(
    directory: Path,
    config: ServerConfig,
    on_ready: Callable[[Listening], None],
    on_round: Callable[[RoundSummary], None] = lambda summary: None,
) -> None:
    """Serve until SIGINT or SIGTERM; then answer who waits, and return.

    Args:
        directory: holds the files that ``config`` names; ``authority/``, ``credential.key`` and ``data/`` are made.
        config: what to serve, and how.
        on_ready: called once, when connections are accepted.
        on_round: gets every round that ends, committed or abandoned.

    Raises:
        PortInUseError: something else listens there.
        UsageError: a file or a value that cannot be used.
        StorageError: the directory cannot be written, or another server uses it.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(logging_to(config.log_format, config.log_level))
        stack.callback(event, logging.INFO, "stopped")
        listener = stack.enter_context(listen(config.host, config.port))
        authority = directory / "authority"
        ensure_authority(authority)
        with storage_errors(f"directory {directory}"):
            key = load_or_make_key(directory / "credential.key")
            token = load_or_make_token(directory / "admin.token")
        stack.enter_context(contextlib.closing(DirectoryLock(directory / "data" / "lock")))
        storage = SqliteStorage(directory / "data", keep_checkpoints=config.keep_checkpoints)
        stack.enter_context(contextlib.closing(storage))
        record = load_population(storage, directory, config)
        service = Service(storage, config, Credentials(key), on_round=on_round, directory=directory)
        port = listener.getsockname()[1]
        ready = Listening(f"https://{config.host}:{port}", config.population, record.round, _resting(service, storage))
        admin = Admin(service, storage, directory, config, token)
        app = create_app(service, Gate.of(config, service.credentials, directory), admin.routes())
        serving = tls_config(app, authority, config.limits)
        stack.enter_context(serve_metrics(service.metrics, config.metrics_port))
        server = TlsServer(
            serving, on_ready=lambda: _begun(ready, service, on_ready), on_stop=lambda: _stopping(service)
        )
        server.run(sockets=[listener])


def _resting(service: Service, storage: SqliteStorage) -> tuple[str, ...]:
    """Say of every paused task why it is: a server that serves and does nothing must not be a riddle."""
    rows = {row.task: row for row in storage.rounds(service.population)}
    told = []
    for task in service.coordinator.tasks():
        if task.state == "paused":
            why = rows[task.task].reason if task.task in rows else ""
            told.append(f"task {task.task!r} is paused" + (f": {why}" if why else ""))
    return tuple(told)


def _begun(ready: Listening, service: Service, on_ready: Callable[[Listening], None]) -> None:
    on_ready(ready)
    state = service.releasing.desk.state(service.now_s())
    event(logging.INFO, "serving", population=ready.population, round=ready.round, releases=state)


def _stopping(service: Service) -> None:
    event(logging.INFO, "stopping")
    service.stop()
