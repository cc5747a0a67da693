"""The HTTPS adapter of the authority: one request. No access log, and nothing is written anywhere."""

import time

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from covey.admission.guard import error_body
from covey.admission.limits import Limits, RateLimiter, network_of
from covey.authority.registrar import Registrar
from covey.types.errors import CoveyError, NotFoundError, TooLargeError, WireError
from covey.wire.messages import MAX_MESSAGE_BYTES, Certify, decode_message, encode_message

__all__ = ["create_app"]

_NO_STORE = {"cache-control": "no-store"}


def create_app(registrar: Registrar, limits: Limits) -> Starlette:
    """Return the application; its route is that of ``wire/SPEC.md``, section 10."""
    requests = RateLimiter(limits.peer_per_s, limits.peer_burst, limits.max_entries)

    async def certify(request: Request) -> Response:
        peer = request.client.host if request.client is not None else ""
        requests.take(network_of(peer), time.monotonic())
        message = decode_message(await _body(request), Certify)
        answer = await run_in_threadpool(registrar.certify, message)
        return Response(encode_message(answer), media_type="application/json", headers=_NO_STORE)

    return Starlette(
        routes=[Route("/v1/certify", certify, methods=["POST"])],
        exception_handlers={
            CoveyError: _on_covey_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_hung_up,
            Exception: _on_bug,
        },
    )


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_MESSAGE_BYTES:
            raise TooLargeError("message", expected=f"at most {MAX_MESSAGE_BYTES} bytes", got="more")
    return bytes(data)


def _failure(error: CoveyError, status: int) -> Response:
    headers = {"retry-after": str(max(1, round(error.retry_after_s)))} if error.retry_after_s else {}
    return Response(error_body(error), status, media_type="application/json", headers=headers)


async def _on_covey_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CoveyError)
    return _failure(error, error.http_status)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = NotFoundError if error.status_code == 404 else WireError
    return _failure(kind("request", expected="POST /v1/certify", got="another"), error.status_code)


async def _on_hung_up(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_bug(request: Request, error: Exception) -> Response:
    return _failure(CoveyError("authority", expected="an answer", got="a failure of its own"), 500)
