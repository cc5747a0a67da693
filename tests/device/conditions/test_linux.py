"""UPower, logind and NetworkManager as Linux has them: mocked services on a bus of our own."""

import sys
import time
from contextlib import closing

import psutil
import pytest

from covey.device.clock import SystemClock
from covey.device.conditions.bus import BusAwayError, SystemBus
from covey.device.conditions.idle import LinuxIdle
from covey.device.conditions.power import Charging
from covey.device.conditions.unmetered import LinuxUnmetered
from covey.types.clock import VirtualClock

from .buses import private_bus

UPOWER = ("org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower")
LOGIND = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
NETWORK = ("org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager")


@pytest.fixture(scope="module")
def services():
    with private_bus() as bus:
        for template in ("upower", "logind", "networkmanager"):
            bus.start(template)
        bus.call(NETWORK[0], NETWORK[1], "AddProperty", "ssv", (NETWORK[2], "Metered", ("u", 0)), MOCK)
        yield bus


MOCK = "org.freedesktop.DBus.Mock"


@pytest.fixture
def bus(services, monkeypatch):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", services.address)
    with closing(SystemBus(SystemClock())) as bus:
        yield bus


def until(source, holds):
    """Read until the source says so: a signal is on its way. The bound is for a test that would hang."""
    for _ in range(200):
        reading = source.read()
        if reading.holds == holds:
            return reading
        time.sleep(0.01)
    raise AssertionError(f"still not {holds}")


def test_charging_follows_upower_by_its_signals(services, bus):
    source = Charging(bus)
    assert source.read().holds
    services.change(*UPOWER, OnBattery=("b", True))
    assert "--assume charging" in until(source, False).hint
    services.change(*UPOWER, OnBattery=("b", False))
    until(source, True)


def test_idle_follows_logind(services, bus):
    source = LinuxIdle(bus)
    assert source.read().holds  # nobody is logged in, whatever the hint says
    services.call(*LOGIND[:2], "AddSession", "ssusb", ("c1", "seat0", 1000, "me", True), MOCK)
    assert "--assume idle" in until(source, False).hint
    services.change(*LOGIND, IdleHint=("b", True))
    until(source, True)
    services.change(*LOGIND, IdleHint=("b", False))
    until(source, False)


@pytest.mark.parametrize(
    ("metered", "holds", "hint"),
    [(2, True, ""), (1, False, "is metered"), (4, True, ""), (3, False, "is metered"), (0, False, "does not know")],
)
def test_unmetered_follows_networkmanager(services, bus, metered, holds, hint):
    services.change(*NETWORK, Metered=("u", metered))
    reading = LinuxUnmetered(bus).read()
    assert reading.holds == holds and hint in reading.hint
    assert holds or "--assume unmetered" in reading.hint


def test_what_is_known_costs_no_call(services, bus, monkeypatch):
    source = Charging(bus)
    source.read()
    monkeypatch.setattr(bus, "call", lambda *a: pytest.fail("asked again"))
    for _ in range(100):
        assert source.read().holds


def test_a_service_that_is_not_there(services, bus):
    for _ in range(2):  # the second time from what is known
        with pytest.raises(BusAwayError, match="ServiceUnknown"):
            bus.get("org.example.Nothing", "/x", "org.example.Nothing", "Y")


def test_a_bus_that_goes_away_and_comes_back(monkeypatch, tmp_path):
    clock = VirtualClock()
    bus = SystemBus(clock)
    with private_bus() as services:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", services.address)
        services.start("upower")
        services.change(*UPOWER, OnBattery=("b", True))
        assert not Charging(bus).read().holds
    with pytest.raises(BusAwayError):
        bus.get(*UPOWER, "OnBattery")
    with private_bus() as services:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", services.address)
        services.start("upower")
        with pytest.raises(BusAwayError, match="away"):  # not asked again at once
            bus.get(*UPOWER, "OnBattery")
        clock.advance_to(60)
        assert bus.get(*UPOWER, "OnBattery") is False
        bus.close()


def test_without_any_bus(monkeypatch, tmp_path):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    monkeypatch.setattr(psutil, "users", list)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    bus = SystemBus(SystemClock())
    nowhere = tmp_path / "sessions"
    assert Charging(bus).read().holds
    assert LinuxIdle(bus, sessions=nowhere).read().holds
    assert "--assume unmetered" in LinuxUnmetered(bus).read().hint
    nowhere.mkdir()
    assert LinuxIdle(bus, sessions=nowhere).read().holds
    (nowhere / "2").touch()
    reading = LinuxIdle(bus, sessions=nowhere).read()
    assert not reading.holds and "--assume idle" in reading.hint


def test_without_jeepney_the_hint_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/somewhere")
    for name in ("jeepney", "jeepney.io.blocking"):
        monkeypatch.setitem(sys.modules, name, None)
    reading = LinuxUnmetered(SystemBus(SystemClock())).read()
    assert not reading.holds and "covey[linux]" in reading.hint
