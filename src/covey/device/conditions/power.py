"""Charging and battery. A device without a battery is always charging, and always has enough."""

from typing import Any

import psutil

from covey.device.conditions.bus import BusAwayError, SystemBus
from covey.device.conditions.source import Reading, failing, holding

__all__ = ["Battery", "Charging", "MIN_BATTERY"]

MIN_BATTERY = 0.2
"""The least charge: below it the person needs what the charger gives more than the federation does."""

_UPOWER = ("org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower")
_UNPLUGGED = "on battery; plug it in, or --assume charging"


class Charging:
    """On mains: UPower where there is one, else what psutil finds (Linux, macOS, Windows)."""

    max_age_s = 0.5

    def __init__(self, bus: SystemBus | None = None) -> None:
        """Read from ``bus`` where the platform has one."""
        self._bus = bus

    def read(self) -> Reading:
        """Read whether the device is on mains."""
        if self._bus is not None:
            try:
                on_battery = self._bus.get(*_UPOWER, "OnBattery")
                return failing(_UNPLUGGED) if on_battery else holding()
            except BusAwayError:
                pass
        battery = _battery()
        if battery is None or battery.power_plugged:
            return holding()
        if battery.power_plugged is None:
            return failing("cannot tell whether the device is on mains; or --assume charging")
        return failing(_UNPLUGGED)


class Battery:
    """Enough charge in the battery."""

    max_age_s = 10.0

    def __init__(self, at_least: float = MIN_BATTERY) -> None:
        """Demand a fraction of a full battery."""
        self._at_least = at_least

    def read(self) -> Reading:
        """Read the charge."""
        battery = _battery()
        if battery is None or battery.percent >= 100 * self._at_least:
            return holding()
        return failing(f"below {self._at_least:.0%} of its charge; wait until it is charged, or --assume battery")


def _battery() -> Any:
    """Return psutil's battery; None where the platform has none, or psutil knows none."""
    sensors = getattr(psutil, "sensors_battery", None)
    return sensors() if sensors is not None else None
