"""The HTTPS adapter: requests become messages to the roles, and their answers become responses. No access log."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from covey.server.admission import Gate
from covey.server.messages import AbandonArrived, DeviceArrived, ReportArrived, StepArrived
from covey.server.operations import operation_routes
from covey.server.service import Service
from covey.types.errors import (
    CoveyError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UpdateFormatError,
    WireError,
)
from covey.wire.messages import (
    ACTIVE_STEPS,
    CREDENTIAL_SCHEME,
    MAX_MESSAGE_BYTES,
    Abandon,
    Assignment,
    CheckIn,
    Enroll,
    ErrorBody,
    Joined,
    decode_message,
    encode_message,
)

__all__ = ["create_app", "json_answer", "small_body"]

Handler = Callable[[Request], Awaitable[Response]]

_BINARY = "application/octet-stream"
_IMMUTABLE = {"cache-control": "public, max-age=31536000, immutable"}
_HTTP_CODES = {404: "not_found", 405: "wire_invalid"}


def create_app(service: Service, gate: Gate | None = None, more: Sequence[BaseRoute] = ()) -> Starlette:
    """Return the application that serves ``service``; the routes are those of ``wire/SPEC.md``.

    Args:
        service: the roles.
        gate: who is let in; None: as the service's configuration says.
        more: routes beside those of devices: an administrator's.
    """
    gate = gate or Gate.of(service.config, service.credentials)

    async def enroll(request: Request) -> Response:
        message = decode_message(await small_body(request), Enroll)
        _own_population(service, message.population)
        peer = request.client.host if request.client is not None else ""
        return json_answer(await gate.enroll(message, peer, service.now_s()))

    async def check_in(request: Request) -> Response:
        message = decode_message(await small_body(request), CheckIn)
        subject = _authorize(service, gate, request)
        _own_population(service, message.population)
        if (now := service.come_back_now()) is not None:
            return json_answer(now)
        ticket, waited = service.ask_selector(DeviceArrived, subject)
        answer = await _unless_hung_up(request, waited, lambda: service.leave(ticket))
        service.metrics.check_in("assigned" if isinstance(answer, Assignment) else "come_back")
        return json_answer(answer)

    async def report(request: Request) -> Response:
        _authorize(service, gate, request)
        session = request.path_params["session"]
        _own_mode(service, session, "plain")
        with service.metrics.reporting() as done:
            answer = received(request, lambda ticket, body: ReportArrived(ticket, session, body))
            return json_answer(done(await answer))

    async def step(request: Request) -> Response:
        _authorize(service, gate, request)
        session, name = request.path_params["session"], _step(service, request)
        with service.metrics.reporting() as done:
            if name == "mask":  # as large as a model: it is read into one of the few buffers
                taken = received(request, lambda ticket, body: StepArrived(ticket, session, name, body))
                return json_answer(await taken)
            data = await small_body(request, _content_length(request, service.max_body_bytes))
            answer = service.ask_aggregator(session, lambda ticket: StepArrived(ticket, session, name, data))
            return json_answer(done(await answer))

    async def told(request: Request) -> Response:
        _authorize(service, gate, request)
        ticket, answer = service.await_step(request.path_params["session"], _step(service, request))
        try:
            message = await asyncio.wait_for(_unless_hung_up(request, answer, lambda: None), service.config.poll_s)
        except TimeoutError:
            return Response(status_code=204)  # not yet: ask again
        finally:
            service.give_up(ticket)
        return json_answer(message) if isinstance(message, Joined) else Response(message, media_type=_BINARY)

    async def received(request: Request, message: Callable[[str, memoryview], Any]) -> Any:
        """Read a body into one of the few buffers, hand it over, and return what the aggregator answers."""
        size = _content_length(request, service.max_body_bytes)
        service.shards.place(request.path_params["session"])  # a buffer is for those who were selected
        buffer = service.take_buffer()
        used = 0
        try:
            async for chunk in request.stream():
                if used + len(chunk) > size:
                    raise TooLargeError("report", expected=f"{size} bytes", got="more")
                buffer[used : used + len(chunk)] = chunk
                used += len(chunk)
            if used != size:
                raise UpdateFormatError("report", expected=f"{size} bytes", got=f"{used} bytes", hint="truncated")
            answer = service.deliver(request.path_params["session"], buffer, used, message)
        except BaseException:
            service.buffers.give(buffer, used)
            raise
        return await answer

    async def abandon(request: Request) -> Response:
        message = decode_message(await small_body(request), Abandon)
        _authorize(service, gate, request)
        session = request.path_params["session"]
        reason = message.reason[:64]
        return json_answer(
            await service.ask_aggregator(session, lambda ticket: AbandonArrived(ticket, session, reason))
        )

    async def blob(request: Request) -> Response:
        counted = "authorization" in request.headers and bool(_authorize(service, gate, request))
        name = request.path_params["sha256"]
        start = _range_start(request, name)
        data = service.blob(name, counted=counted, start=start)
        headers = {**_IMMUTABLE, "etag": f'"{name}"', "accept-ranges": "bytes"}
        if start >= len(data) > 0:
            return Response(status_code=416, headers={"content-range": f"bytes */{len(data)}"})
        if not start:
            return Response(data, media_type=_BINARY, headers=headers)
        headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return Response(memoryview(data)[start:], 206, headers, _BINARY)

    async def status(request: Request) -> Response:
        after = request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > 12:
            raise WireError("after", expected="a count", got="something else")
        return json_answer(service.status(request.path_params["population"], int(after)))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.close()

    app = Starlette(
        routes=[
            Route("/v1/enroll", enroll, methods=["POST"]),
            Route("/v1/checkin", check_in, methods=["POST"]),
            Route("/v1/sessions/{session}/report", report, methods=["POST"]),
            Route("/v1/sessions/{session}/secure/{step}", step, methods=["POST"]),
            Route("/v1/sessions/{session}/secure/{step}", told, methods=["GET"]),
            Route("/v1/sessions/{session}/abandon", abandon, methods=["POST"]),
            Route("/v1/plans/{sha256}", blob, methods=["GET"]),
            Route("/v1/checkpoints/{sha256}", blob, methods=["GET"]),
            Route("/v1/populations/{population}", status, methods=["GET"]),
            *operation_routes(service),
            *more,
        ],
        exception_handlers={
            CoveyError: _on_covey_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_hung_up,
            Exception: _on_bug,
        },
        lifespan=lifespan,
    )
    app.state.metrics = service.metrics
    return app


def _range_start(request: Request, name: str) -> int:
    """Return where the rest of a blob begins that a device asks for; 0 is all of it, as for any other kind of range.

    What ``If-Range`` names must be this blob, else all of it is sent: RFC 9110, section 13.1.5.
    """
    found = re.fullmatch(r"bytes=(\d{1,15})-", request.headers.get("range", ""))
    if found is None or request.headers.get("if-range", f'"{name}"') != f'"{name}"':
        return 0
    return int(found[1])


def _own_mode(service: Service, session: str, mode: str) -> None:
    own = service.shards.mode(session)
    if own != mode:
        raise WireError("session", expected=f"the {own} mode's requests", got=f"one of {mode} mode")


def _step(service: Service, request: Request) -> str:
    _own_mode(service, request.path_params["session"], "secure")
    name: str = request.path_params["step"]
    if name not in ACTIVE_STEPS:
        raise NotFoundError("secure step", expected=f"one of {', '.join(ACTIVE_STEPS)}", got="another")
    return name


def _authorize(service: Service, gate: Gate, request: Request) -> str:
    """Return the subject of a credential that is good here."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme != CREDENTIAL_SCHEME:
        raise UnauthorizedError("credential", expected="a bearer credential", got="none", hint="enroll first")
    claims = gate.admit(token, service.now_s())
    _own_population(service, claims.population)
    return claims.subject


def _own_population(service: Service, population: str) -> None:
    if population != service.population:
        raise NotFoundError(
            "population", expected="one that this server serves", got="another name", hint="check --population"
        )


async def small_body(request: Request, at_most: int = MAX_MESSAGE_BYTES) -> bytes:
    """Return a request's body. Raises TooLargeError as soon as it is longer than ``at_most``."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > at_most:
            raise TooLargeError("message", expected=f"at most {at_most} bytes", got="more")
    return bytes(data)


def _content_length(request: Request, at_most: int) -> int:
    text = request.headers.get("content-length", "")
    if not text.isdecimal():
        raise WireError("report", expected="a content-length", got="none")
    if int(text) > at_most:
        raise TooLargeError("report", expected=f"at most {at_most} bytes", got=f"{int(text)} bytes")
    return int(text)


async def _unless_hung_up(request: Request, answer: "asyncio.Future[Any]", hung_up: Callable[[], None]) -> Any:
    """Return the answer; if the client hangs up first, say so and stop waiting."""
    if answer.done():
        return answer.result()
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        hung_up()
        raise ClientDisconnect
    finally:
        gone.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_answer(message: Any) -> Response:
    """Return a message as a response that nobody keeps."""
    return Response(encode_message(message), media_type="application/json", headers={"cache-control": "no-store"})


def _failure(status: int, body: ErrorBody) -> Response:
    headers = {"retry-after": str(max(1, round(body.retry_after_s)))} if body.retry_after_s else {}
    return Response(encode_message(body), status, media_type="application/json", headers=headers)


async def _on_covey_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CoveyError)
    request.app.state.metrics.failed(error.code)
    return _failure(
        error.http_status,
        ErrorBody(code=error.code, message=str(error), hint=error.hint, retry_after_s=error.retry_after_s),
    )


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "wire_invalid")
    return _failure(error.status_code, ErrorBody(code=code, message=error.detail))


async def _on_hung_up(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_bug(request: Request, error: Exception) -> Response:
    return _failure(500, ErrorBody(code="error", message="the server failed; its log says more"))
