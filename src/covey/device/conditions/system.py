"""The sources of this machine, and what its owner, or an application, puts in their place."""

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from covey.device.conditions.bus import SystemBus
from covey.device.conditions.conditions import NAMES, Conditions
from covey.device.conditions.idle import LinuxIdle, MacIdle, WindowsIdle
from covey.device.conditions.power import Battery, Charging
from covey.device.conditions.room import Memory, Storage
from covey.device.conditions.source import Assumed, Reading, Source, failing
from covey.device.conditions.unmetered import LinuxUnmetered, MacUnmetered, WindowsUnmetered
from covey.types.clock import DeviceClock
from covey.types.errors import UsageError

__all__ = ["assumptions", "system_conditions"]


class _Unknown:
    """A condition that nothing on this platform tells."""

    max_age_s = float("inf")

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> Reading:
        return failing(f"cannot be told on this platform; --assume {self._name} if it holds")


def system_conditions(
    folder: Path,
    clock: DeviceClock,
    *,
    assume: Collection[str] = (),
    instead: Mapping[str, Source] | None = None,
    platform: str = sys.platform,
) -> Conditions:
    """Return the conditions of this machine. Close them in the end.

    Args:
        folder: whose file system needs room.
        clock: of the device.
        assume: names of conditions to take for granted.
        instead: sources that the application brings, by name: in place of these, or besides.
        platform: as ``sys.platform``.

    Raises:
        UsageError: a name that is no condition's.
    """
    bus = SystemBus(clock)
    sources: dict[str, Source] = {"idle": _Unknown("idle"), "charging": Charging(), "unmetered": _Unknown("unmetered")}
    if platform == "linux":
        sources = {"idle": LinuxIdle(bus), "charging": Charging(bus), "unmetered": LinuxUnmetered(bus)}
    elif platform == "darwin":
        sources |= {"idle": MacIdle(), "unmetered": MacUnmetered()}
    elif platform == "win32":
        sources |= {"idle": WindowsIdle(), "unmetered": WindowsUnmetered()}
    sources |= {"battery": Battery(), "storage": Storage(folder), "memory": Memory()}
    sources |= instead or {}
    for name in assume:
        sources[_known(name)] = Assumed()
    return Conditions(sources, clock, on_close=bus.close)


def assumptions(text: str) -> tuple[str, ...]:
    """Read ``idle,charging``.

    Raises:
        UsageError: a name that is no condition's.
    """
    return tuple(_known(part.strip()) for part in text.split(",") if part.strip())


def _known(name: str) -> str:
    if name not in NAMES:
        raise UsageError("--assume", expected=f"some of {', '.join(NAMES)}", got=name[:40])
    return name
