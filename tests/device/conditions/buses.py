"""A bus of our own with mocked system services on it: python-dbusmock, as the system's Python has it."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"


def needs_mocked_services():
    """Skip, naming what is missing."""
    if shutil.which("dbus-daemon") is None:
        pytest.skip("needs dbus-daemon (Debian: dbus)")
    probe = [SYSTEM_PYTHON, "-c", "import dbusmock"]
    if not Path(SYSTEM_PYTHON).exists() or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs python-dbusmock for the system's Python (Debian: python3-dbusmock)")


class Bus:
    """A private bus, at ``address``."""

    def __init__(self, address, environment):
        self.address = address
        self._environment = environment
        self._children = []

    def start(self, template):
        """Start a mocked service and wait until it is there."""
        names = {
            "upower": "org.freedesktop.UPower",
            "logind": "org.freedesktop.login1",
            "networkmanager": "org.freedesktop.NetworkManager",
        }
        command = [SYSTEM_PYTHON, "-m", "dbusmock", "--system", "--template", template]
        child = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)
        self._children.append(child)
        for _ in range(300):
            if self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "NameHasOwner", "s", (names[template],))[0]:
                return child
            time.sleep(0.05)
        raise AssertionError(f"{template}: the mock did not start")

    def call(self, service, path, member, signature="", body=(), interface=None):
        from jeepney import DBusAddress, new_method_call
        from jeepney.io.blocking import open_dbus_connection
        from jeepney.wrappers import unwrap_msg

        with open_dbus_connection(self.address) as connection:
            address = DBusAddress(path, service, interface or service)
            message = new_method_call(address, member, signature or None, body)
            return unwrap_msg(connection.send_and_get_reply(message, timeout=5))

    def change(self, service, path, interface, **properties):
        """Change properties; the mock sends the signal that the real service sends."""
        self.call(service, path, "UpdateProperties", "sa{sv}", (interface, properties), "org.freedesktop.DBus.Mock")

    def close(self):
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(timeout=10)


@contextlib.contextmanager
def private_bus():
    needs_mocked_services()
    command = ["dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1", "--address=unix:tmpdir=/tmp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            address = daemon.stdout.readline().strip()
            bus = Bus(address, {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address})
            try:
                yield bus
            finally:
                bus.close()
        finally:
            daemon.terminate()
