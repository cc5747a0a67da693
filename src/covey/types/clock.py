"""Time as an argument: whoever needs it takes a :class:`Clock`, so that a test or a simulation can turn the hands."""

from typing import Protocol

__all__ = ["Clock", "DeviceClock", "VirtualClock", "Wakeable"]


class Clock(Protocol):
    """Where the time comes from."""

    def now_s(self) -> float:
        """Return seconds since the Unix epoch."""
        ...


class Wakeable(Protocol):
    """What ends a wait early; a ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """Say whether the wait is over."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, or for so many seconds; return whether it is set."""
        ...


class DeviceClock(Clock, Protocol):
    """The clocks of a device, which sleeps, and whose date somebody may change. Deadlines are on ``elapsed_s``."""

    def elapsed_s(self) -> float:
        """Return seconds since some moment: never set, never backwards, and going on while the machine sleeps."""
        ...

    def wait(self, wake: Wakeable, timeout_s: float) -> bool:
        """Wait for ``wake``, or until so many seconds have elapsed, sleep of the machine included; return if woken."""
        ...


class VirtualClock:
    """A clock that moves only when told to. Never runs backwards."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def elapsed_s(self) -> float:
        """Return the virtual time in seconds: nobody sets this clock."""
        return self._now_s

    def wait(self, wake: Wakeable, timeout_s: float) -> bool:
        """Let the time pass at once, unless ``wake`` is set."""
        if not wake.is_set():
            self.advance_to(self._now_s + timeout_s)
        return wake.is_set()

    def advance_to(self, at_s: float) -> None:
        """Move to ``at_s``; an earlier time leaves the clock where it is."""
        self._now_s = max(self._now_s, at_s)
