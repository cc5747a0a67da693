"""Stopping by signal, in a process of its own."""

import signal
import subprocess
import sys

import pytest

CODE = """
import sys, threading
from covey.device.pace import stop_on_signals
stopped = threading.Event()
with stop_on_signals(stopped.set) as received:
    print("ready", flush=True)
    while not stopped.wait(0.01):
        pass
sys.exit(128 + received[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_is_told(number):
    process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (128 + number, "")


def test_handlers_are_put_back():
    from covey.device.pace import stop_on_signals

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
