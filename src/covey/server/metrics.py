"""Prometheus metrics of one server: sums over devices and rounds, never a label of a device, a session or a person.

They are served by a port of their own, on the loopback address, because they tell an outsider how many devices there
are and when: whatever collects them runs beside the server, or reaches it by a tunnel.
"""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from covey.server.buffer import STALENESS
from covey.types.errors import CoveyError, PortInUseError, UsageError, all_errors
from covey.wire.administration import BufferStatus
from covey.wire.messages import CandidateSummary, Reported, RoundSummary

__all__ = ["Metrics", "serve_metrics"]

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 3600)
_STALENESS = (0, 0.5, 1, 2, 3, 5, 10, 20, 50, 100)
_OTHER = "other"
_ROUND_WORDS = (
    "",
    "too_few_devices",
    "too_few_reports",
    "too_many_lost",
    "paused",
    "cancelled",
    "completed",
    "rolled_back",
)


class Metrics:
    """The counters of one server. Safe to read from another thread."""

    def __init__(self) -> None:
        """Begin at zero, in a registry of its own."""
        self.registry = CollectorRegistry()
        self._rounds = self._counter("covey_rounds", "Rounds that ended.", "kind", "status", "reason")
        self._check_ins = self._counter("covey_check_ins", "Check-ins by their answer.", "answer")
        self._reports = self._counter("covey_reports", "Updates by outcome: counted, or the error's code.", "outcome")
        self._devices = self._counter("covey_devices", "Devices of ended rounds: reported or lost.", "outcome")
        self._bytes = self._counter("covey_bytes", "Payload bytes of ended rounds.", "direction")
        self._candidates = self._counter("covey_candidates", "Candidates for release by verdict.", "status", "reason")
        self._failures = self._counter("covey_errors", "Requests that were answered with an error.", "code")
        self._seconds = Histogram(
            "covey_round_seconds", "How long committed rounds took.", ["kind"], buckets=_SECONDS, registry=self.registry
        )
        self._waiting = Gauge("covey_waiting_devices", "Devices that wait to be selected.", registry=self.registry)
        self._round = Gauge("covey_round", "The newest version of the model.", registry=self.registry)
        self._updates = Gauge("covey_buffer_updates", "Updates in the buffer at hand.", registry=self.registry)
        self._training = Gauge("covey_buffer_devices", "Devices that train for a buffer.", registry=self.registry)
        self._staleness = Histogram(
            "covey_buffer_staleness", "Mean staleness of committed buffers.", buckets=_STALENESS, registry=self.registry
        )
        self._release = Gauge("covey_release_version", "The newest release; 0: none.", registry=self.registry)

    def watch(
        self,
        waiting: Callable[[], int],
        round_number: Callable[[], int],
        release: Callable[[], int],
        buffer: Callable[[], BufferStatus],
    ) -> None:
        """Read these figures when they are asked for."""
        self._updates.set_function(lambda: buffer().updates)
        self._training.set_function(lambda: buffer().devices)
        self._waiting.set_function(waiting)
        self._round.set_function(round_number)
        self._release.set_function(release)

    def round_ended(self, row: RoundSummary) -> None:
        """Count a round."""
        self._rounds.labels(row.kind, row.status, _known(row.reason, *_ROUND_WORDS)).inc()
        self._devices.labels("reported").inc(row.reported)
        self._devices.labels("lost").inc(max(0, row.lost))
        self._bytes.labels("down").inc(row.bytes_down)
        self._bytes.labels("up").inc(row.bytes_up)
        if row.status == "committed":
            self._seconds.labels(row.kind).observe(row.seconds)
            if (staleness := row.metrics.get(STALENESS)) is not None:
                self._staleness.observe(staleness)

    def check_in(self, answer: str) -> None:
        """Count a check-in: ``assigned`` or ``come_back``."""
        self._check_ins.labels(answer).inc()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[Callable[[Any], Any]]:
        """Count an update, or a step of a secure sum, by its outcome.

        Yields a function that takes the answer and gives it back; ``Reported`` counts as ``counted``, an error that the
        block raises by its code.
        """

        def done(answer: Any) -> Any:
            if isinstance(answer, Reported):
                self._reports.labels("counted").inc()
            return answer

        try:
            yield done
        except CoveyError as error:
            self._reports.labels(_known(error.code)).inc()
            raise

    def decided(self, candidate: CandidateSummary) -> None:
        """Count a verdict."""
        self._candidates.labels(candidate.status, candidate.reason).inc()

    def failed(self, code: str) -> None:
        """Count a request that was answered with an error."""
        self._failures.labels(_known(code)).inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


def _known(word: str, *others: str) -> str:
    """Return a label out of a fixed set, whatever comes: labels live for ever."""
    return word if word in all_errors() or word in others else _OTHER


@contextlib.contextmanager
def serve_metrics(metrics: Metrics, port: int) -> Iterator[None]:
    """Serve ``/metrics`` on a port of the loopback address while the block lasts, in a thread of its own; 0: nowhere.

    Raises:
        PortInUseError: something else listens there.
        UsageError: a port that cannot be had.
    """
    if not port:
        yield
        return
    try:
        started: tuple[WSGIServer, threading.Thread] = start_http_server(port, "127.0.0.1", metrics.registry)
    except OSError as e:
        where = f"metrics_port {port}"
        if e.errno == errno.EADDRINUSE:
            raise PortInUseError(where, expected="a free port", got="one in use", hint="choose another one") from e
        raise UsageError(where, expected="a port of this machine", got=e.strerror or "an error") from e
    server, thread = started
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
