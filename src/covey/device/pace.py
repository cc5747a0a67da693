"""How an agent waits, and how it is told to stop."""

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

__all__ = ["Pace", "stop_on_signals"]

_LEAST_S = 0.05
_DAY_S = 86_400.0
_MOST_JITTER_S = 5.0
"""A server that steers the pace spreads devices itself, or lets them meet: they shall come when they were told to."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How an agent waits.

    Attributes:
        first_s: the first pause after a failure; it doubles with each failure in a row.
        most_s: the longest such pause.
        jitter: a pause that the server asks for is lengthened by up to this fraction, so that devices that were told
            the same do not all come back at once.
        conditions_s: how often to look whether the device may train now.
    """

    first_s: float = 0.5
    most_s: float = 60.0
    jitter: float = 0.1
    conditions_s: float = 15.0

    def after_failure(self, num_failures: int, chance: random.Random) -> float:
        """Return the pause after the ``num_failures``-th failure in a row, at least 1: half of it is random."""
        longest = min(self.most_s, self.first_s * 2.0 ** min(num_failures - 1, 30))
        return longest * chance.uniform(0.5, 1.0)

    def as_asked(self, retry_after_s: float, chance: random.Random) -> float:
        """Return the server's pause with jitter; never so short that it would be a flood, never above a day."""
        pause_s = max(_LEAST_S, min(retry_after_s, _DAY_S))
        return pause_s + min(self.jitter * pause_s, _MOST_JITTER_S) * chance.random()


@contextlib.contextmanager
def stop_on_signals(*stops: Callable[[], None]) -> Iterator[list[int]]:
    """Call every ``stop`` on Ctrl-C or SIGTERM; a second Ctrl-C interrupts as usual. Main thread only.

    Yields:
        A list that receives the number of the signal that came, for the exit code (128 + number).
    """
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # In a thread: a handler runs between two instructions of the main thread, which may hold the very lock that
        # a stop needs.
        threading.Thread(target=lambda: [stop() for stop in stops], daemon=True).start()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
