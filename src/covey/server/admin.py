"""The administrator's requests, under ``/v1/admin``, behind a credential of their own that no device ever has.

Plans come signed by the owner. The server checks the signature with the public key in its directory, so that a wrong
key is told at once and not by the devices; it never holds the secret one.
"""

import hmac
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from covey.plans.lint import lint_plan
from covey.plans.plan import MAX_PLAN_BYTES, unpack_plan
from covey.server.config import ServerConfig, check_name
from covey.server.http import json_answer, small_body
from covey.server.messages import ChangeTask, CreateTask
from covey.server.population import check_signature
from covey.server.service import Service
from covey.server.settings import RoundSettings, TaskSettings, encode_settings
from covey.server.tasks import EVALUATE, TRAIN, Action, TaskState
from covey.server.view import population_details
from covey.storage.interface import Storage, TaskRecord
from covey.types.errors import NotFoundError, UnauthorizedError, UsageError, WireError
from covey.types.tensors import sha256_hex
from covey.wire.administration import PopulationDetails, Populations, ReleaseWanted, TaskChange, TaskWanted
from covey.wire.messages import (
    CREDENTIAL_SCHEME,
    BlobRef,
    decode_message,
)

__all__ = ["Admin", "load_or_make_token"]

_TOKEN_BYTES = 32
_OF_THE_DESK = ("candidate", "reference")
"""Settings that only the release desk may give: it keeps the checkpoints that they name."""
_ACTIONS = (Action.PAUSE, Action.RESUME, Action.CANCEL, Action.ROLL_BACK)


def load_or_make_token(path: Path) -> str:
    """Return the administrator's token in ``path``; on first use, make one, readable by its owner only.

    Raises:
        UsageError: a file that holds none.
    """
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
    if len(token) < _TOKEN_BYTES:  # an empty file, say, would let everybody in
        raise UsageError(
            f"file {path}",
            expected=f"a token of at least {_TOKEN_BYTES} characters",
            got=f"{len(token)}",
            hint="delete it, and the next start makes a new one",
        )
    return token


class Admin:
    """Answers an administrator. Every request is authorized before anything of it is read."""

    def __init__(self, service: Service, storage: Storage, directory: Path, config: ServerConfig, token: str) -> None:
        """Serve ``service``'s population.

        Args:
            service: carries what is asked to the coordinator.
            storage: keeps plans.
            directory: has the owner's public key.
            config: says under which name.
            token: the administrator's.
        """
        self._service = service
        self._storage = storage
        self._directory = directory
        self._config = config
        self._token = token.encode()

    def routes(self) -> list[Route]:
        """Return the routes, as ``wire/SPEC.md`` has them."""
        population = "/v1/admin/populations/{population}"
        return [
            Route("/v1/admin/populations", self._guarded(self._populations), methods=["GET"]),
            Route(population, self._guarded(self._population), methods=["GET"]),
            Route(f"{population}/plans", self._guarded(self._store_plan), methods=["POST"]),
            Route(f"{population}/tasks", self._guarded(self._create), methods=["POST"]),
            Route(f"{population}/tasks/{{task}}", self._guarded(self._change), methods=["POST"]),
            Route(f"{population}/releases", self._guarded(self._release), methods=["POST"]),
        ]

    def _guarded(self, handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme != CREDENTIAL_SCHEME or not hmac.compare_digest(token.encode(), self._token):
                raise UnauthorizedError(
                    "admin credential",
                    expected="the token in the server's admin.token",
                    got="none, or another",
                    hint="--token-file FILE, or --dir DIR on the server's machine",
                )
            if request.path_params.get("population", self._service.population) != self._service.population:
                raise NotFoundError("population", expected="one that this server serves", got="another name")
            return json_answer(await handler(request))

        return guarded

    async def _populations(self, request: Request) -> Populations:
        return Populations(populations=(self._service.population,))

    async def _population(self, request: Request) -> PopulationDetails:
        waiting = self._service.selector.num_waiting
        return population_details(self._service.coordinator, self._storage, waiting=waiting)

    async def _store_plan(self, request: Request) -> BlobRef:
        data = await small_body(request, MAX_PLAN_BYTES)
        name = sha256_hex(data)
        check_signature(self._directory, self._config, name, request.query_params.get("signature", ""))
        lint_plan(unpack_plan(data))
        self._storage.put_blob(data)
        return BlobRef(sha256=name, num_bytes=len(data), path=f"/v1/plans/{name}")

    async def _create(self, request: Request) -> Any:
        wanted = decode_message(await small_body(request), TaskWanted)
        check_name("task", wanted.task)
        if wanted.kind not in (TRAIN, EVALUATE):
            raise WireError("kind", expected=f"{TRAIN} or {EVALUATE}", got=wanted.kind[:64])
        if wanted.checkpoint and wanted.kind == TRAIN:
            raise WireError("checkpoint", expected="none: a training goes on from the newest", got="one")
        check_signature(self._directory, self._config, wanted.plan, wanted.signature)
        record = TaskRecord(
            self._service.population,
            wanted.task,
            wanted.kind,
            wanted.plan,
            wanted.signature,
            encode_settings(self._settings(wanted.settings)),
            TaskState.CREATED.value,
            checkpoint=wanted.checkpoint,
        )
        return await self._service.administer(lambda ticket: CreateTask(ticket, record))

    async def _change(self, request: Request) -> Any:
        change = decode_message(await small_body(request), TaskChange)
        if change.action not in [a.value for a in _ACTIONS]:
            raise WireError("action", expected=", ".join(a.value for a in _ACTIONS), got=change.action[:64])
        name = request.path_params["task"]
        return await self._service.administer(
            lambda ticket: ChangeTask(ticket, name, change.action, change.round),
        )

    async def _release(self, request: Request) -> Any:
        wanted = decode_message(await small_body(request), ReleaseWanted)
        return self._service.releasing.roll_back(wanted.version)

    def _settings(self, given: dict[str, Any]) -> TaskSettings:
        """Return a task's settings; its rounds go as ``server.toml`` says, but for what is the task's own, or given."""
        own = {"hyper": {}, "max_rounds": 0}
        rounds = {**msgspec.structs.asdict(self._config.round), **own, **_table(given.get("round", {}))}
        merged = {**given, "round": rounds}
        for table, kind in ((merged, TaskSettings), (rounds, RoundSettings)):
            known = [name for name in kind.__dataclass_fields__ if name not in _OF_THE_DESK]
            if unknown := set(table) - set(known):
                raise WireError("settings", expected=", ".join(known), got=min(unknown)[:64])
        try:
            return msgspec.convert(merged, TaskSettings)
        except msgspec.ValidationError as e:
            raise WireError("settings", expected="values of the right type", got=str(e)) from e


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WireError("settings.round", expected="an object", got=type(value).__name__)
    return value
