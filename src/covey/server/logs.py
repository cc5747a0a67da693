"""What a server tells of itself: one event in a line, as text or as JSON, on stderr.

An event is a few words and some facts. Facts are of the server, of a round or of a release; none is of a device: there
is no session, no credential, no address, and access logs stay off. So a line about a round cannot name who was in it.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from covey.server.buffer import STALENESS
from covey.wire.messages import RoundSummary

__all__ = ["LOG", "event", "logging_to", "tell_round"]

LOG = logging.getLogger("covey.server")
"""The server's own logger; uvicorn's errors go the same way."""

_SOURCES = ("covey.server", "uvicorn.error")
_FACTS = "covey_facts"


def event(level: int, what: str, *, error: BaseException | None = None, **facts: Any) -> None:
    """Log that ``what`` happened.

    Args:
        level: of :mod:`logging`.
        what: a few constant words.
        error: whose traceback is told.
        facts: numbers and stable words; never anything of one device.
    """
    LOG.log(level, what, exc_info=error, extra={_FACTS: facts})


def tell_round(row: RoundSummary) -> None:
    """Log that a round ended."""
    facts = {name: getattr(row, name) for name in _OF_ROUND}
    if (staleness := row.metrics.get(STALENESS)) is not None:
        facts[STALENESS] = staleness
    event(logging.INFO, "round ended", **facts)


_OF_ROUND = (
    "round", "kind", "task", "status", "reason", "selected", "reported", "lost", "seconds", "bytes_up", "bytes_down",
)  # fmt: skip
"""What the log tells of a round: of its public row, without the metrics, which are in the row."""


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {k}={_plain(v)}" for k, v in _facts(record).items())
        line = f"{_time(record)} {record.levelname.lower()} {record.getMessage()}{facts}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"at": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        facts = {k: v for k, v in _facts(record).items() if k not in line}
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**line, **facts}, default=str)


@contextlib.contextmanager
def logging_to(form: str, level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Send the server's events to a stream while the block lasts; no other logging is touched.

    Args:
        form: ``text`` or ``json``.
        level: the least that is told: ``debug``, ``info``, ``warning`` or ``error``.
        stream: where to; stderr unless told.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    least = getattr(logging, level.upper())
    before = [(logger, logger.level, logger.propagate) for logger in map(logging.getLogger, _SOURCES)]
    for logger, _, _ in before:
        logger.addHandler(handler)
        # uvicorn's chatter is about connections and may hold addresses: only what failed is told.
        logger.setLevel(least if logger is LOG else max(least, logging.ERROR))
        logger.propagate = False
    try:
        yield
    finally:
        for logger, old, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(old)
            logger.propagate = propagate


def _facts(record: logging.LogRecord) -> Mapping[str, Any]:
    found = getattr(record, _FACTS, {})
    return found if isinstance(found, Mapping) else {}


def _plain(value: Any) -> str:
    """Return a fact without line breaks or spaces that could pass for another fact."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return (
        text if text and all(c.isprintable() and not c.isspace() and c not in '"=' for c in text) else json.dumps(text)
    )


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
