"""What every request must keep to, before the application sees it: plain bodies, which arrive in time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from covey.admission.limits import Limits
from covey.types.errors import ContentEncodingError, CoveyError, TooSlowError
from covey.wire.messages import ErrorBody, encode_message

__all__ = ["Guard", "error_body", "too_slow"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware. Bodies are never unpacked, so a compressed one is refused unread."""

    def __init__(self, app: App, limits: Limits) -> None:
        """Stand before ``app``."""
        self._app, self._limits = app, limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        encodings = {value.strip().lower() for name, value in scope["headers"] if name == b"content-encoding"}
        if encodings - {b"identity", b""}:
            await _refuse(ContentEncodingError("body", expected="one that is not compressed", got="another"), send)
            return
        # A GET has no body that anybody waits for.
        guarded = _InTime(receive, self._limits) if scope["method"] == "POST" else receive
        await self._app(scope, guarded, send)


class _InTime:
    """Receives a body; every byte that arrives buys time for the next ones."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._until_s = time.monotonic() + limits.body_timeout_s
        self._more = True

    async def __call__(self) -> Message:
        if not self._more:
            return await self._receive()  # only a hang-up can come now
        try:
            async with asyncio.timeout(self._until_s - time.monotonic()):
                message = await self._receive()
        except TimeoutError as e:
            raise too_slow("body") from e
        self._more = bool(message.get("more_body", False))
        self._until_s += len(message.get("body", b"")) / self._limits.min_bytes_per_s
        return message


def too_slow(what: str) -> TooSlowError:
    """Return the error of a request whose ``what`` did not come in time."""
    return TooSlowError(what, expected="all of it in time", got="a part", hint="send it again")


def error_body(error: CoveyError) -> bytes:
    """Return an error as it travels."""
    return encode_message(
        ErrorBody(code=error.code, message=str(error), hint=error.hint, retry_after_s=error.retry_after_s)
    )


async def _refuse(error: CoveyError, send: Send) -> None:
    data = error_body(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(data)),
        (b"connection", b"close"),  # the rest of the body is not waited for
    ]
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
