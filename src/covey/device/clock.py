"""The device's real clocks: one that people set, and one that only goes on, also while the lid is closed."""

import time

from covey.types.clock import Wakeable

__all__ = ["SystemClock"]

_ALSO_ASLEEP: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))
"""Linux has the first, macOS the second; Windows' ``time.monotonic`` goes on in sleep by itself."""

_PIECE_S = 30.0
"""The longest wait in one piece: most platforms' waits stand still while the machine sleeps, so it looks up then."""


class SystemClock:
    """Implements :class:`covey.types.clock.DeviceClock`."""

    def now_s(self) -> float:
        """Return seconds since the Unix epoch, as the machine's date says."""
        return time.time()

    def elapsed_s(self) -> float:
        """Return seconds since some moment in the past, the machine's sleep included."""
        return time.monotonic() if _ALSO_ASLEEP is None else time.clock_gettime(_ALSO_ASLEEP)

    def wait(self, wake: Wakeable, timeout_s: float) -> bool:
        """Wait for ``wake``, or for so many seconds; return whether it was woken."""
        until_s = self.elapsed_s() + timeout_s
        while (left_s := until_s - self.elapsed_s()) > 0:
            if wake.wait(min(left_s, _PIECE_S)):
                return True
        return wake.is_set()
