"""kill -9 of a device at every step of a secure session, then a restart: one upload a session, and the ledger holds."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from device import world

from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.recorder import INTERRUPTED
from covey.device.transport import HttpTransport
from covey.wire.messages import SECURE_STEPS

from . import parts
from .app import P
from .test_secure_run import PACE, QUICK, devices

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

ALL = [(step, when) for step in SECURE_STEPS for when in ("before", "after")]
LEFT = ALL.index(("mask", "before"))
"""From here on the ledger said that the update leaves before the device died."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server whose rounds want five devices, and four of them."""
    folder = tmp_path_factory.mktemp("secure-killed")
    rounds = QUICK.replace("report_timeout_s = 20.0", "report_timeout_s = 4.0")
    plan = world.secure_plan_bytes()
    directory = parts.write_directory(folder / "server", goal=5, rounds=rounds, plan=plan, min_fraction=0.6)
    with parts.served(directory) as served, devices(served, directory, folder, count=4):
        yield served, directory


@pytest.mark.parametrize(("step", "when"), ALL)
def test_a_killed_device_uploads_nothing_twice(server, tmp_path, step, when):
    served, directory = server
    ca = directory / "authority" / "ca.pem"
    with DeviceHome(tmp_path) as home:
        home.examples.add_many("points", world.points(9), world.SCHEMA)
    script, key = Path(__file__).with_name("dying_device.py"), world.OWNER.public_key().public_bytes_raw().hex()
    command = [sys.executable, script, served.url, ca, tmp_path, P, key, step, when]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    before = list(Ledger.of_home(tmp_path).entries())
    assert [e.kind for e in before] == ["session_started", "sending"][: 2 if ALL.index((step, when)) >= LEFT else 1]
    with contextlib.closing(HttpTransport(served.url, ca)) as status, DeviceHome(tmp_path) as home:
        assert home.examples.count("points") == 9
        round_at_death = status.status(P).round
        policy = world.policy(accept_plain=False, min_cohort=3)
        transport = HttpTransport(served.url, ca)
        summary = DeviceAgent(home, served.url, policy, transport=transport, pace=PACE).run(once=True)
        assert summary.counted == 1 and status.status(P).round >= round_at_death
    ledger = Ledger.of_home(tmp_path)
    ledger.verify()
    entries = list(ledger.entries())
    assert entries[: len(before)] == before
    (dead,) = {e.session for e in before}
    assert [(e.kind, e.reason) for e in entries[len(before) :] if e.session == dead] == [("lost", INTERRUPTED)]
    sent = [e.session for e in entries if e.kind == "sending"]
    assert len(sent) == len(set(sent)), "a session is sent once"
    assert len({e.body_sha256 for e in entries if e.kind == "sending"}) == len(sent), "and never under the same masks"
    assert entries[-1].kind == "counted"
