"""Idle: nobody uses the device now. A machine on which nobody is logged in is idle.

Linux asks logind, whose hint the desktop sets and terminals imply; without it, only a machine without any login session
is known to be idle. macOS and Windows tell when the last key was pressed.
"""

import ctypes
import re
from pathlib import Path
from typing import Any

import psutil

from covey.device.conditions.bus import BusAwayError, SystemBus
from covey.device.conditions.commands import output_of
from covey.device.conditions.source import Reading, failing, holding

__all__ = ["LinuxIdle", "MacIdle", "WindowsIdle", "hid_idle_s"]

QUIET_S = 300.0
"""Without a hint of the desktop's own: how long after the last key or movement nobody is taken to be there."""

_LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
_SESSIONS = Path("/run/systemd/sessions")
_IN_USE = "somebody uses the device; leave it alone for a while, or --assume idle"
_UNKNOWN = "cannot tell whether somebody uses the device ({}); or --assume idle"


class LinuxIdle:
    """logind's idle hint."""

    max_age_s = 0.5

    def __init__(self, bus: SystemBus, *, sessions: Path = _SESSIONS) -> None:
        """Read from ``bus``; ``sessions`` is where logind notes login sessions."""
        self._bus = bus
        self._sessions = sessions

    def read(self) -> Reading:
        """Read the hint."""
        try:
            # A terminal's hint changes without a signal: what is known is not kept for long.
            if self._bus.get(*_LOGIND, "IdleHint", max_age_s=1.0) or not self._bus.call(*_LOGIND, "ListSessions")[0]:
                return holding()
        except BusAwayError as away:
            return failing(_UNKNOWN.format(away)) if self._somebody() else holding()
        return failing(_IN_USE)

    def _somebody(self) -> bool:
        """Say whether there is any login session, without logind."""
        if self._sessions.is_dir():
            return any(self._sessions.iterdir())
        return bool(psutil.users())


class MacIdle:
    """When the last key was pressed or the pointer moved: ``ioreg``."""

    max_age_s = 0.9

    def read(self) -> Reading:
        """Read the time since the last input."""
        idle_s = hid_idle_s(output_of(["ioreg", "-c", "IOHIDSystem", "-d", "4"]))
        if idle_s is None:
            return failing(_UNKNOWN.format("ioreg does not say"))
        return holding() if idle_s >= QUIET_S else failing(_IN_USE)


class WindowsIdle:
    """When the last input came: ``GetLastInputInfo``."""

    max_age_s = 0.5

    def read(self) -> Reading:
        """Read the time since the last input."""
        idle_s = _last_input_s()
        if idle_s is None:
            return failing(_UNKNOWN.format("Windows does not say"))
        return holding() if idle_s >= QUIET_S else failing(_IN_USE)


def hid_idle_s(text: str) -> float | None:
    """Return ``HIDIdleTime`` of an ``ioreg`` listing in seconds (it is printed in nanoseconds), or None."""
    found = re.search(r'"HIDIdleTime"\s*=\s*(\d+)', text)
    return int(found[1]) / 1e9 if found else None


class _LastInput(ctypes.Structure):
    _fields_ = (("cbSize", ctypes.c_uint), ("dwTime", ctypes.c_uint))


def _last_input_s() -> float | None:
    libraries: Any = getattr(ctypes, "windll", None)
    if libraries is None:
        return None  # not Windows
    info = _LastInput(cbSize=ctypes.sizeof(_LastInput))
    if not libraries.user32.GetLastInputInfo(ctypes.byref(info)):
        return None
    # Both count milliseconds since the start in 32 bits, and wrap after 49 days.
    since_ms: int = (libraries.kernel32.GetTickCount() - info.dwTime) & 0xFFFFFFFF
    return since_ms / 1000
