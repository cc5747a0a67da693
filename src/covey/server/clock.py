"""The server's clock: the time of day when the process started, and a monotonic clock from there on."""

import time
from collections.abc import Callable

__all__ = ["steady_clock"]


def steady_clock(
    wall_s: Callable[[], float] = time.time, monotonic_s: Callable[[], float] = time.monotonic
) -> Callable[[], float]:
    """Return a clock of seconds since 1970 that never jumps, whatever is done to the machine's.

    Every deadline of a round is a difference of two readings, and credentials are issued and checked by the same
    clock: a clock that is set forward must not close rounds and expire credentials, one that is set back must not hold
    them open. If the time of day was wrong at the start, it stays as wrong until a restart.

    Args:
        wall_s: the time of day, read once, now.
        monotonic_s: a clock that only goes forward.
    """
    ahead_s = wall_s() - monotonic_s()
    return lambda: ahead_s + monotonic_s()
