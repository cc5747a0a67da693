"""Whether a server works: the storage answers, and the clock that opens and closes rounds runs."""

import asyncio
import logging
from collections.abc import Callable

import msgspec

from covey.server.logs import event
from covey.types.errors import CoveyError, UnhealthyError

__all__ = ["Health", "check_health", "tell_stopped_clock"]


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a server that works. One that does not answers 503 with the error ``unhealthy``."""

    status: str = "ok"


def check_health(clock: "asyncio.Task[None] | None", read: Callable[[], object]) -> None:
    """Check that the clock runs and the storage answers.

    Args:
        clock: the task that keeps the time.
        read: reads something small from the storage.

    Raises:
        UnhealthyError: says which of the two does not.
    """
    if clock is None or clock.done():
        raise UnhealthyError("server", expected="a clock that runs", got="one that stopped", hint="restart it")
    try:
        read()
    except CoveyError as error:
        raise UnhealthyError("server", expected="a storage that answers", got=error.code, hint=error.hint) from error


def tell_stopped_clock(clock: "asyncio.Task[None]") -> None:
    """Log why the clock stopped, if it was not told to."""
    if not clock.cancelled() and (error := clock.exception()) is not None:
        event(logging.ERROR, "clock stopped", error=error)
