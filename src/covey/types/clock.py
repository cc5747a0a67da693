"""Time as an argument: whoever needs it takes a :class:`Clock`, so that a test or a simulation can turn the hands."""

from typing import Protocol

__all__ = ["Clock", "VirtualClock"]


class Clock(Protocol):
    """Where the time comes from."""

    def now_s(self) -> float:
        """Return seconds since the Unix epoch."""
        ...


class VirtualClock:
    """A clock that moves only when told to. Never runs backwards."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def advance_to(self, at_s: float) -> None:
        """Move to ``at_s``; an earlier time leaves the clock where it is."""
        self._now_s = max(self._now_s, at_s)
