"""Nothing of a device is left behind: the server is killed at every phase, and every byte it leaves is searched.

Real devices send to a real server: plain updates as float32, plain updates by EDEN, and masked ones. Whatever it leaves
(its directory with the database's journals, its temporary files, all that it printed) holds no 16 bytes in a row of
what any device sent, trained, or masked; and no name by which a session or a device could be told. That the search
would find them is shown with servers that leak.
"""

import base64
import functools
import random
import sys
import time

import msgspec
import numpy as np
import pytest

from benchmarks.probe import ProbePlan
from benchmarks.watched import WatchedDevice, devices, filled_homes
from covey.compression.codec import segment_seed
from covey.device.trainer import OnnxTrainer
from covey.device.transport import HttpTransport
from covey.server.aggregator import body_limits, segment_codecs
from covey.types.segments import to_fixed_point
from covey.wire.framing import decode_update

from . import parts
from .leak import Detector, Gate, ServerProcess

# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see which files a process has open"),
]

COUNT = 4
CONFIG = f"""port = 0
[round]
goal = {COUNT}
over_selection = 1.0
min_fraction = 0.75
patience_s = 0.2
report_timeout_s = 60.0
step_timeout_s = 60.0
[pace]
least_s = 0.05
most_s = 30
"""
MODES = {
    "identity": {"secure": False},
    "eden": {"secure": False, "codec": "hd|eden:2"},
    "secure": {"secure": True},
}
SECURE = ("ready", "advertise", "share", "mask", "unmask")


@functools.cache
def plan(mode: str) -> ProbePlan:
    return ProbePlan(COUNT, **MODES[mode])


class Rehearsal:
    """A server's directory and four devices, used again from one kill to the next."""

    def __init__(self, mode, path, faults=""):
        self.mode, self.base, self.faults = mode, path, faults
        self.secure = MODES[mode]["secure"]
        self.directory = plan(mode).write(path / "server", CONFIG)
        self.devices = [WatchedDevice(OnnxTrainer()) for _ in range(COUNT)]
        self.opened = set()
        filled_homes(path / "homes", COUNT)

    def kill_at(self, phase):
        """Run until ``phase`` and kill the server there."""
        gate = Gate(*{"closing": ("never", 0), "committed": ("never", 0)}.get(phase, (phase, 2)))
        last = "unmask" if self.secure else "report"
        at_last = Gate(last, COUNT)
        for device in self.devices:
            device.before, device.after = gate.before, lambda step: (gate.after(step), at_last.after(step))
        server = ServerProcess(self.directory, self.base, self.faults)
        try:
            with devices(
                self.devices[: 2 if phase == "selecting" else COUNT], server.url,
                self.directory / "authority" / "ca.pem", self.base / "homes", secure=self.secure,
            ):  # fmt: skip
                self._wait(server, phase, gate, at_last)
                self.opened |= server.open_files
                server.kill()
                gate.open()
        finally:
            server.kill()

    def _wait(self, server, phase, gate, at_last):
        transport = HttpTransport(server.url, self.directory / "authority" / "ca.pem")
        population = "probe"
        try:
            if phase == "selecting":
                parts.wait_until(lambda: transport.status(population).waiting == 2)
            elif phase == "committed":
                before = transport.status(population).round
                parts.wait_until(lambda: transport.status(population).round > before)
            elif phase == "closing":  # somewhere between the last message and the commit: every run another instant
                parts.wait_until(lambda: at_last.answered >= COUNT - 1)
                time.sleep(random.uniform(0.0, 0.01))
            else:
                parts.wait_until(lambda: gate.answered == 2)
        finally:
            transport.close()

    def secrets(self):
        """Return what each device sent, trained and summed, in every form that the server or the device has it in."""
        out = []
        for device in self.devices:
            out += [body for _, body in device.sent]
            for update in device.updates.values():
                out += [v.tobytes() for v in update.values()]
                out += self._integers(update) if self.secure else []
            if not self.secure:
                out += [v.tobytes() for given, body in device.sent for v in self._decoded(given, body)]
        return out

    def names(self):
        """Return the credentials, their subjects, and the sessions' tokens."""
        names = [name for device in self.devices for name in device.names]
        bearers = [name.partition(".")[0] for name in names if "." in name]
        claims = [msgspec.json.decode(base64.urlsafe_b64decode(b + "=" * (-len(b) % 4))) for b in bearers]
        return {*names, *(c[2] for c in claims)}

    def _integers(self, update):
        rings = plan(self.mode).plan.manifest.layout(0)
        fixed = [to_fixed_point(update[s.name], s) for s in rings]
        return [v.tobytes() for v in fixed] + [v.astype(np.uint32).tobytes() for v in fixed]

    def _decoded(self, given, body):
        manifest = plan(self.mode).plan.manifest
        codecs, cut = segment_codecs(manifest, 0), decode_update(body, body_limits(manifest, 0))
        for s in manifest.layout(0):
            codec = codecs[s.name]
            public = segment_seed(codec, round_seed=given.public_seed, session=given.session, segment=s.name)
            yield codec.decode(cut[s.name], s.length, public)

    def leaks(self):
        return Detector(self.secrets()).search(self.directory, self.base / "tmp", self.base / "logs")


def check(rehearsal, num_bodies):
    secrets = rehearsal.secrets()
    assert sum(map(len, (d.sent for d in rehearsal.devices))) >= num_bodies
    assert len(Detector(secrets).windows) > 1000  # there is something to be found
    assert rehearsal.leaks() == []
    left = [p for root in ("server", "tmp", "logs") for p in (rehearsal.base / root).rglob("*") if p.is_file()]
    text = b"\0".join(p.name.encode() + b"\0" + p.read_bytes() for p in left)
    assert not [name for name in rehearsal.names() if name.encode() in text]
    assert not [p for p in left if p.is_relative_to(rehearsal.base / "tmp")]
    # It never has a file open but those of its data (the database, a checkpoint that it commits) and what it prints to.
    allowed = (f"{rehearsal.directory}/data", f"{rehearsal.base}/logs/")
    ours = {name for name in rehearsal.opened if not name.endswith((".so", ".pem", ".zip", ".py"))}
    assert not [name for name in ours if not name.startswith(allowed)]


@pytest.mark.parametrize("mode", ["identity", "eden"])
def test_a_server_killed_at_any_phase_of_a_plain_round_leaves_nothing_of_a_device(mode, tmp_path):
    rehearsal = Rehearsal(mode, tmp_path)
    for phase in ("selecting", "report", "closing", "committed"):
        rehearsal.kill_at(phase)
    check(rehearsal, num_bodies=2 + 2 * COUNT)


def test_a_server_killed_at_any_step_of_a_secure_round_leaves_nothing_of_a_device(tmp_path):
    rehearsal = Rehearsal("secure", tmp_path)
    for phase in ("selecting", *SECURE, "closing", "committed"):
        rehearsal.kill_at(phase)
    check(rehearsal, num_bodies=5 * COUNT)


# Servers that leak: each runs the same rehearsal with one fault, and is found out.

LEAKY = """
import {imports}
from covey.server.{module} import {role}
receive = {role}.receive
def leaky(self, message, now_s):
    if hasattr(message, "body") and len(message.body) > 100:
        body = bytes(message.body)
        {leak}
    return receive(self, message, now_s)
{role}.receive = leaky
"""
FILE = "tempfile.NamedTemporaryFile(delete=False).write(body)"
LEAKS = {
    "a temporary file": ("identity", "tempfile", FILE),
    "a temporary file, coded": ("eden", "tempfile", FILE),
    "the log, as hexadecimal digits": ("secure", "sys", "print('mask', body[-64:].hex(), flush=True)"),
    "the log, as base64": ("identity", "base64", "print(base64.b64encode(body).decode(), flush=True)"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_server_that_leaks_is_found_out(name, tmp_path):
    mode, imports, leak = LEAKS[name]
    module, role = ("secure", "SecureAggregator") if mode == "secure" else ("aggregator", "Aggregator")
    faults = LEAKY.format(imports=imports, module=module, role=role, leak=leak)
    rehearsal = Rehearsal(mode, tmp_path, faults)
    rehearsal.kill_at("committed")
    (found, *_) = rehearsal.leaks()
    assert ("logs" in str(found)) == ("log" in name)


def test_a_decoded_vector_and_a_name_are_found_too(tmp_path):
    vector = np.random.default_rng(0).standard_normal(50).astype(np.float32).tobytes()
    detector = Detector([vector])
    (tmp_path / "a").write_bytes(b"x" * 1001 + vector[13:29] + b"y")
    (tmp_path / "b").write_bytes(b"x" * 1001 + vector[13:28] + b"y")
    assert detector.search(tmp_path) == [tmp_path / "a"]
    assert detector.finds(vector[3:19].hex().encode()) and detector.finds(repr(vector[3:19]).encode())
    for cut in range(3):
        assert detector.finds(b"z" * 5 + base64.urlsafe_b64encode(vector[cut : 32 + cut]))
    assert not Detector([bytes(100), np.ones(30).tobytes()]).windows  # constants are nobody's
