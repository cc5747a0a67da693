"""Unmetered: traffic costs the owner nothing. A network of which that is not known counts as metered.

A server on the device itself is reached without any network, so that there is nothing to pay for.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from covey.device.conditions.bus import BusAwayError, SystemBus
from covey.device.conditions.commands import output_of
from covey.device.conditions.source import Reading, failing, holding

__all__ = ["LinuxUnmetered", "MacUnmetered", "WindowsUnmetered", "cost_type", "hardware_port", "is_on_this_device"]

_NETWORK_MANAGER = (
    "org.freedesktop.NetworkManager",
    "/org/freedesktop/NetworkManager",
    "org.freedesktop.NetworkManager",
)
_UNMETERED = (2, 4)
_METERED = (1, 3)
"""NetworkManager's NMMetered: no and, by its guess, no; yes and, by its guess, yes. 0 is unknown."""

_COSTS = "the network is metered; use another, or --assume unmetered"
_UNKNOWN = "cannot tell whether the network is metered ({}); if traffic costs nothing here: --assume unmetered"

_COST_QUERY = (
    "[void][Windows.Networking.Connectivity.NetworkInformation,Windows.Networking.Connectivity,ContentType=WindowsRuntime];"
    "[Windows.Networking.Connectivity.NetworkInformation]::GetInternetConnectionProfile()"
    ".GetConnectionCost().NetworkCostType"
)


class LinuxUnmetered:
    """NetworkManager's ``Metered``."""

    max_age_s = 0.5

    def __init__(self, bus: SystemBus) -> None:
        """Read from ``bus``."""
        self._bus = bus

    def read(self) -> Reading:
        """Read whether the network is metered."""
        try:
            metered = self._bus.get(*_NETWORK_MANAGER, "Metered")
        except BusAwayError as away:
            return failing(_UNKNOWN.format(away))
        if metered in _UNMETERED:
            return holding()
        return failing(_COSTS if metered in _METERED else _UNKNOWN.format("NetworkManager does not know"))


class MacUnmetered:
    """A cable. macOS has no tool that tells what a wireless network costs, so that one is unknown."""

    max_age_s = 30.0

    def read(self) -> Reading:
        """Read what kind of port the default route leaves by."""
        found = re.search(r"interface:\s*(\S+)", output_of(["route", "-n", "get", "default"]))
        port = hardware_port(output_of(["networksetup", "-listallhardwareports"]), found[1] if found else "")
        if re.search(r"ethernet|\blan\b", port, re.IGNORECASE):
            return holding()
        return failing(_UNKNOWN.format(f"it is {port}" if port else "no default route"))


class WindowsUnmetered:
    """The connection's cost, which Windows keeps for each network."""

    max_age_s = 30.0

    def read(self) -> Reading:
        """Read the cost type."""
        kind = cost_type(output_of(["powershell", "-NoProfile", "-NonInteractive", "-Command", _COST_QUERY]))
        if kind == "Unrestricted":
            return holding()
        return failing(_COSTS if kind in ("Fixed", "Variable") else _UNKNOWN.format("Windows does not say"))


def hardware_port(listing: str, interface: str) -> str:
    """Return the port of an interface in ``networksetup -listallhardwareports``, or an empty string."""
    for block in re.split(r"\n\s*\n", listing):
        port, device = re.search(r"Hardware Port: (.+)", block), re.search(r"Device: (\S+)", block)
        if port and device and device[1] == interface:
            return port[1].strip()
    return ""


def cost_type(text: str) -> str:
    """Return the last word that PowerShell printed: ``Unrestricted``, ``Fixed``, ``Variable`` or ``Unknown``."""
    words = text.split()
    return words[-1] if words else ""


def is_on_this_device(url: str) -> bool:
    """Say whether a server's address is this device itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
