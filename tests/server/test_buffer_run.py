"""Asynchronous aggregation over TLS: `covey serve` in a process of its own, and real devices of different speed."""

import contextlib
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from device import world

from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.ledger import Ledger
from covey.device.trainer import OnnxTrainer, TrainingStopped
from covey.device.transport import HttpTransport
from covey.plans.evaluation import evaluation_plan
from covey.server.aggregator import body_limits
from covey.storage.sqlite import SqliteStorage
from covey.types.segments import HEADER
from covey.types.tensors import sha256_hex, unpack_tensors
from covey.wire.framing import decode_update
from covey.wire.messages import Assignment, CheckIn, Enroll

from . import parts
from .buffers import plan, same
from .test_tasks_run import PACE, admin, change, committed, devices, evaluate, status_when

# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

P = parts.POPULATION
PATIENCE_S = 60.0


class Recording(HttpTransport):
    """A connection that remembers what was assigned and what was sent."""

    def __init__(self, url, ca_file):
        super().__init__(url, ca_file)
        self.assigned, self.bodies = [], []

    def check_in(self, message, credential):
        answer = super().check_in(message, credential)
        self.assigned += [answer] if isinstance(answer, Assignment) else []
        return answer

    def report(self, session, body, credential):
        self.bodies.append(bytes(body))
        return super().report(session, body, credential)


class Slow(OnnxTrainer):
    """A trainer that has begun when it says so, and ends when it is let."""

    def __init__(self):
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()

    def run(self, job, examples, should_stop):
        self.began.set()
        while not self.may_end.wait(0.01):
            if should_stop():
                raise TrainingStopped
        self.may_end.clear()
        return super().run(job, examples, should_stop)


class Device:
    """A real device: its home, its agent, and the connection that remembers. It trains once at a time."""

    def __init__(self, served, directory, home, seed, trainer=None):
        self.home, self.url, self.ca = home, served.url, directory / "authority" / "ca.pem"
        self.trainer = trainer or OnnxTrainer()
        with DeviceHome(home) as opened:
            if not opened.examples.count("points"):
                opened.examples.add_many("points", world.points(8, seed=seed), world.SCHEMA)
        self.assigned, self.bodies = [], []

    def run(self):
        """Run until one update was counted, and return how often it was, and how often one was lost."""
        transport = Recording(self.url, self.ca)
        with contextlib.closing(transport), DeviceHome(self.home) as home:
            agent = DeviceAgent(home, self.url, world.policy(), transport=transport, pace=PACE, trainer=self.trainer)
            self.agent = agent
            agent.run(once=True)
        self.assigned, self.bodies = transport.assigned, transport.bodies
        return agent.summary

    def ledger(self):
        entries = Ledger.of_home(self.home)
        entries.verify()
        return [(e.kind, e.reason) for e in entries.entries()]


@pytest.fixture(scope="module")
def _plan():
    return plan(concurrency=3, max_staleness=1)


@pytest.fixture
def directory(tmp_path, _plan):
    return parts.write_directory(tmp_path / "server", plan=_plan, rounds="report_timeout_s = 60.0")


def status(served, directory):
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        return transport.status(P)


def filled(served, directory):
    with admin(served, directory) as client:
        buffer = client.details().tasks[0].buffer
        return None if buffer is None else (buffer.updates, buffer.devices)


def model(served, directory, ref):
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        return unpack_tensors(parts.manifest().params, b"".join(transport.fetch(ref, "")))


def expected(params, updates):
    """Return where Algorithm 1 puts the model, from bodies as they were sent, each with its staleness."""
    bits = parts.manifest().layout(0)[1].fraction_bits
    total, weight = np.zeros(parts.LENGTH), 0.0
    for body, staleness in updates:
        own = decode_update(body, body_limits(parts.manifest(), 0))
        delta = np.frombuffer(own["model"], "<f4") * np.float32(1 / np.sqrt(1 + staleness))
        total += np.rint(delta.astype(np.float64) * 2.0**bits) * 2.0**-bits
        weight += float(np.frombuffer(own[HEADER], "<f8")[1])
    step, out, start = total / weight, {}, 0
    for spec in parts.manifest().params:
        size = int(np.prod(spec.shape))
        out[spec.name] = (params[spec.name] + step[start : start + size].reshape(spec.shape)).astype(np.float32)
        start += size
    return out


def test_a_stale_update_counts_by_its_weight_and_a_too_stale_one_is_refused(directory, tmp_path):
    with parts.served(directory) as served, ThreadPoolExecutor(1) as pool:
        one, two = (Device(served, directory, tmp_path / f"quick{i}", i) for i in (1, 2))
        slow = Device(served, directory, tmp_path / "slow", 3, Slow())
        running = pool.submit(slow.run)
        assert slow.trainer.began.wait(PATIENCE_S)
        assert one.run().counted == two.run().counted == 1
        parts.wait_until(lambda: status(served, directory).round == 1)
        first = model(served, directory, status(served, directory).checkpoint)
        start = unpack_tensors(parts.manifest().params, world.checkpoint())
        assert same(first, expected(start, [(one.bodies[0], 0), (two.bodies[0], 0)]))
        slow.trainer.may_end.set()
        assert running.result(PATIENCE_S).counted == 1
        assert filled(served, directory) == (1, 0)
        assert one.run().counted == 1
        parts.wait_until(lambda: status(served, directory).round == 2)
        second = status(served, directory)
        assert (slow.assigned[0].round, one.assigned[0].round) == (1, 2)
        assert same(
            model(served, directory, second.checkpoint), expected(first, [(slow.bodies[0], 1), (one.bodies[0], 0)])
        )
        assert [r.metrics["staleness"] for r in second.rounds] == [0.0, 0.5]

        slow.trainer.began.clear()
        running = pool.submit(slow.run)
        assert slow.trainer.began.wait(PATIENCE_S)
        for number in (3, 4):
            assert one.run().counted == two.run().counted == 1
            parts.wait_until(lambda number=number: status(served, directory).round == number)
        assert filled(served, directory) == (0, 0)  # its place is another's
        slow.trainer.may_end.set()
        parts.wait_until(lambda: slow.ledger()[-1] == ("lost", "too_stale"))
        slow.trainer.may_end.set()  # it has begun anew, with the newest version
        assert running.result(PATIENCE_S).counted == 1 and slow.ledger()[-1][0] == "counted"
        assert filled(served, directory) == (1, 0) and status(served, directory).rounds[-1].round == 4


@contextlib.contextmanager
def raw(served, directory):
    with contextlib.closing(HttpTransport(served.url, directory / "authority" / "ca.pem")) as transport:
        yield transport, transport.enroll(Enroll(population=P)).credential


def begin(served, directory):
    """Let somebody check in who is never heard of again."""
    with raw(served, directory) as (transport, credential):
        return transport.check_in(CheckIn(population=P), credential)


def test_places_of_devices_that_vanish_are_given_to_others(tmp_path, _plan):
    directory = parts.write_directory(tmp_path / "server", plan=_plan, rounds="report_timeout_s = 1.5")
    with parts.served(directory) as served:
        assert all(isinstance(begin(served, directory), Assignment) for _ in range(3))
        one, two = (Device(served, directory, tmp_path / f"d{i}", i) for i in (1, 2))
        with ThreadPoolExecutor(2) as pool:  # there is no place; they wait
            jobs = [pool.submit(d.run) for d in (one, two)]
            assert [j.result(PATIENCE_S).counted for j in jobs] == [1, 1]
        parts.wait_until(lambda: status(served, directory).round == 1)
        row = status(served, directory).rounds[0]
        assert (row.selected, row.reported, row.lost) == (5, 2, 3)


def test_a_pause_with_an_open_buffer_folds_what_is_in_the_air_and_goes_on(directory, tmp_path):
    with parts.served(directory) as served, ThreadPoolExecutor(2) as pool:
        one, other = (Device(served, directory, tmp_path / f"d{i}", i) for i in (1, 2))
        slow = Device(served, directory, tmp_path / "slow", 3, Slow())
        running = pool.submit(slow.run)
        assert slow.trainer.began.wait(PATIENCE_S)
        assert one.run().counted == 1
        with admin(served, directory) as client:
            assert change(client, "pause").state == "paused"
        slow.trainer.may_end.set()
        assert running.result(PATIENCE_S).counted == 1
        assert filled(served, directory) == (2, 0) and status(served, directory).round == 0
        with admin(served, directory) as client:
            assert change(client, "resume").state == "running"
        parts.wait_until(lambda: status(served, directory).round == 1)
        assert other.run().counted == 1 and filled(served, directory) == (1, 0)


def test_a_killed_server_loses_its_open_buffer_and_nothing_else(directory, tmp_path):
    with parts.served(directory) as served, ThreadPoolExecutor(1) as pool:
        one, two = (Device(served, directory, tmp_path / f"d{i}", i) for i in (1, 2))
        assert one.run().counted == two.run().counted == 1
        parts.wait_until(lambda: status(served, directory).round == 1)
        committed = status(served, directory)
        assert one.run().counted == 1 and filled(served, directory) == (1, 0)
        config = directory / "server.toml"
        config.write_text(config.read_text().replace("port = 0", f"port = {served.url.rpartition(':')[2]}"))
        slow = Device(served, directory, tmp_path / "slow", 3, Slow())
        running = pool.submit(slow.run)
        assert slow.trainer.began.wait(PATIENCE_S)
        served.send_signal(signal.SIGKILL)
        served.wait(30)
        with parts.served(directory) as again:
            assert again.greeting.endswith(", round 1")
            assert status(again, directory).rounds == committed.rounds and filled(again, directory) == (0, 0)
            slow.trainer.may_end.set()
            parts.wait_until(lambda: slow.ledger()[-1] == ("lost", "session_unknown"))
            slow.trainer.may_end.set()
            assert running.result(PATIENCE_S).counted == 1
            assert two.run().counted == 1
            parts.wait_until(lambda: status(again, directory).round == 2)
            assert status(again, directory).rounds[-1].reported == 2


def test_training_in_buffers_and_evaluations_take_turns(directory, tmp_path):
    with parts.served(directory) as served, devices(served, directory, tmp_path):
        with admin(served, directory) as client:
            assert evaluate(client, evaluation_plan(world.plan())).state == "running"
        status = status_when(
            served, directory, lambda s: len(committed(s, "evaluate")) >= 2 and len(committed(s, "train")) >= 5
        )
    trained, measured = committed(status, "train"), committed(status, "evaluate")
    assert [r.round for r in trained] == list(range(1, len(trained) + 1))
    assert all("staleness" in r.metrics and r.reported >= 2 for r in trained)
    first = sha256_hex(world.checkpoint())
    assert {r.checkpoint for r in measured} <= {first, *(r.checkpoint for r in trained)}


def test_killed_at_random_instants_it_stands_at_its_last_commit(directory):
    chance, last = random.Random(), 0
    for _ in range(2):
        with parts.served(directory) as served:
            assert int(served.greeting.rpartition(" ")[2]) >= last
            killer = threading.Timer(chance.uniform(0.0, 0.4), served.kill)
            killer.start()
            with contextlib.suppress(Exception):
                while True:
                    for _ in range(2):
                        with raw(served, directory) as (transport, credential):
                            given = transport.check_in(CheckIn(population=P), credential)
                            assert transport.report(given.session, parts.body(), credential).counted
                    last = status(served, directory).round
            killer.join()
    storage = SqliteStorage(directory / "data")
    record, rows = storage.load(P), storage.rounds(P)
    assert record.round >= last and [r.round for r in rows] == list(range(1, record.round + 1))
    assert {(r.status, r.reported) for r in rows} <= {("committed", 2)}
    assert len(storage.blob(record.checkpoint)) == len(world.checkpoint())
    storage.close()
