"""macOS and Windows: recorded outputs of their tools. Batteries everywhere, as psutil tells of them."""

from types import SimpleNamespace

import psutil
import pytest

from covey.device.conditions import idle, unmetered
from covey.device.conditions.commands import output_of
from covey.device.conditions.idle import QUIET_S, MacIdle, WindowsIdle, hid_idle_s
from covey.device.conditions.power import Battery, Charging
from covey.device.conditions.room import Memory, Storage
from covey.device.conditions.unmetered import (
    MacUnmetered,
    WindowsUnmetered,
    cost_type,
    hardware_port,
    is_on_this_device,
)

IOREG = """\
+-o Root  <class IORegistryEntry, id 0x100000100, retain 35>
  +-o IOResources  <class IOResources, id 0x100000112, registered, matched, active, busy 0 (0 ms), retain 68>
    +-o IOHIDSystem  <class IOHIDSystem, id 0x1000003ff, registered, matched, active, busy 0 (0 ms), retain 26>
        {
          "HIDServiceGlobalModifiersUsage" = 1
          "HIDIdleTime" = 407312845208
          "HIDClickSpace" = {"width"=5,"height"=5}
        }
"""

PORTS = """\

Hardware Port: USB 10/100/1000 LAN
Device: en7
Ethernet Address: 00:e0:4c:68:01:02

Hardware Port: Wi-Fi
Device: en0
Ethernet Address: f0:18:98:01:02:03

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 82:15:9b:01:02:03

VLAN Configurations
===================
"""

ROUTE = """\
   route to: default
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: {}
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
"""


def test_the_idle_time_of_a_mac(monkeypatch):
    assert hid_idle_s(IOREG) == pytest.approx(407.312845208)
    assert hid_idle_s("") is None and hid_idle_s("garbage") is None
    for text, holds, hint in (
        (IOREG, True, ""),
        (IOREG.replace("407312845208", "2000"), False, "uses"),
        ("", False, "cannot"),
    ):
        monkeypatch.setattr(idle, "output_of", lambda command, text=text: text)
        reading = MacIdle().read()
        assert reading.holds == holds and hint in reading.hint


def test_the_network_of_a_mac(monkeypatch):
    assert hardware_port(PORTS, "en7") == "USB 10/100/1000 LAN"
    assert hardware_port(PORTS, "en0") == "Wi-Fi" and hardware_port(PORTS, "en9") == hardware_port("", "en0") == ""
    for interface, holds in (("en7", True), ("en0", False), ("bridge0", False), ("utun3", False)):
        told = {"route": ROUTE.format(interface), "networksetup": PORTS}
        monkeypatch.setattr(unmetered, "output_of", lambda command, told=told: told[command[0]])
        reading = MacUnmetered().read()
        assert reading.holds == holds and (holds or "--assume unmetered" in reading.hint)
    monkeypatch.setattr(unmetered, "output_of", lambda command: "")
    assert "no default route" in MacUnmetered().read().hint


@pytest.mark.parametrize(
    ("text", "holds", "hint"),
    [
        ("Unrestricted\r\n", True, ""),
        ("\r\nFixed\r\n", False, "is metered"),
        ("Variable", False, "is metered"),
        ("Unknown\r\n", False, "cannot tell"),
        ("", False, "cannot tell"),
    ],
)
def test_the_network_of_windows(monkeypatch, text, holds, hint):
    assert cost_type(text) == text.strip()
    monkeypatch.setattr(unmetered, "output_of", lambda command: text)
    reading = WindowsUnmetered().read()
    assert reading.holds == holds and hint in reading.hint


class Windll:
    """What ``ctypes.windll`` is on Windows: milliseconds since the start, in 32 bits."""

    def __init__(self, ticks, last_input, works=1):
        self.user32 = self.kernel32 = self
        self.ticks, self.last_input, self.works = ticks, last_input, works

    def GetTickCount(self):
        return self.ticks

    def GetLastInputInfo(self, pointer):
        info = pointer._obj
        assert info.cbSize == 8
        info.dwTime = self.last_input
        return self.works


def test_the_idle_time_of_windows(monkeypatch):
    assert "cannot tell" in WindowsIdle().read().hint  # here
    quiet_ms = int(QUIET_S * 1000)
    for library, holds in (
        (Windll(quiet_ms + 5, 5), True),
        (Windll(quiet_ms + 5, 6), False),
        (Windll(quiet_ms - 100, 2**32 - 100), True),  # the counter wrapped in between
        (Windll(quiet_ms + 5, 5, works=0), False),
    ):
        monkeypatch.setattr(idle.ctypes, "windll", library, raising=False)
        assert WindowsIdle().read().holds == holds


@pytest.mark.parametrize(
    ("battery", "charging", "enough"),
    [
        (None, True, True),
        (SimpleNamespace(percent=100, power_plugged=True), True, True),
        (SimpleNamespace(percent=80, power_plugged=False), False, True),
        (SimpleNamespace(percent=19.9, power_plugged=True), True, False),
        (SimpleNamespace(percent=20, power_plugged=None), False, True),
    ],
)
def test_batteries(monkeypatch, battery, charging, enough):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert (Charging().read().holds, Battery().read().holds) == (charging, enough)
    monkeypatch.delattr(psutil, "sensors_battery")
    assert Charging().read().holds and Battery().read().holds


def test_room(tmp_path):
    assert Storage(tmp_path, 1).read().holds and Memory(1).read().holds
    assert "free some space" in Storage(tmp_path, 1 << 60).read().hint
    assert "memory free" in Memory(1 << 60).read().hint
    assert "cannot tell" in Storage(tmp_path / "none", 1).read().hint


def test_a_tool_that_fails_says_nothing():
    assert output_of(["/nowhere/at-all"]) == output_of(["false"]) == ""
    assert output_of(["echo", "x"]) == "x\n"


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("https://localhost:8443", True),
        ("https://127.0.0.1:1", True),
        ("https://127.8.8.8", True),
        ("https://[::1]:8443", True),
        ("https://a.localhost", True),
        ("https://10.0.0.1", False),
        ("https://localhost.example.org", False),
        ("https://example.org", False),
        ("nonsense", False),
    ],
)
def test_a_server_on_the_device_itself_costs_nothing(url, here):
    assert is_on_this_device(url) == here
