"""Tasks over TLS with real agents: training and evaluation take turns, a roll-back, a kill, a locked database."""

import contextlib
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from device import world

from covey.cli.admin import AdminClient, Target
from covey.device.agent import DeviceAgent
from covey.device.home import DeviceHome
from covey.device.pace import Pace
from covey.device.transport import HttpTransport
from covey.plans.evaluation import evaluation_plan
from covey.plans.signing import sign_plan
from covey.types.errors import CoveyError
from covey.types.tensors import sha256_hex
from covey.wire.administration import TaskChange, TaskStatus, TaskWanted
from covey.wire.messages import BlobRef

from . import parts

# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

P = parts.POPULATION
QUICK = "patience_s = 0.1\nover_selection = 1.0\nreport_timeout_s = 20.0\n"
PACE = Pace(first_s=0.05, most_s=0.2, jitter=0.0)
COUNT = 4


@pytest.fixture(scope="module")
def _plans():
    return world.plan_bytes(), evaluation_plan(world.plan())


@pytest.fixture
def directory(tmp_path, _plans):
    return parts.write_directory(tmp_path / "server", goal=COUNT, rounds=QUICK, min_fraction=0.5)


@contextlib.contextmanager
def devices(served, directory, tmp_path):
    """Let agents with examples to train on and examples held out run until the end of the block."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(COUNT) as pool:
        agents = []
        for i in range(COUNT):
            home = stack.enter_context(DeviceHome(tmp_path / f"device{i}"))
            home.examples.add_many("points", world.points(7 + i, seed=i), world.SCHEMA)
            home.examples.add_many("points", world.points(5, seed=100 + i), world.SCHEMA, split="test")
            transport = stack.enter_context(contextlib.closing(_transport(served, directory)))
            agents.append(DeviceAgent(home, served.url, world.policy(), transport=transport, pace=PACE))
        jobs = [pool.submit(a.run) for a in agents]
        try:
            yield agents
        finally:
            for agent in agents:
                agent.stop()
            for job in jobs:
                with contextlib.suppress(CoveyError):
                    job.result(timeout=60)


def _transport(served, directory):
    return HttpTransport(served.url, directory / "authority" / "ca.pem")


@contextlib.contextmanager
def admin(served, directory):
    token = (directory / "admin.token").read_text().strip()
    with AdminClient(Target(served.url, token, directory / "authority" / "ca.pem")) as client:
        yield client


def change(client, action, number=0, name=parts.TASK):
    return client.post(f"/tasks/{name}", TaskChange(action=action, round=number), TaskStatus)


def status_when(served, directory, holds):
    """Return the status as soon as ``holds`` of it."""
    with contextlib.closing(_transport(served, directory)) as transport:
        parts.wait_until(lambda: holds(transport.status(P)), timeout_s=60)
        return transport.status(P)


def committed(status, kind):
    return [r for r in status.rounds if r.status == "committed" and r.kind == kind]


def evaluate(client, data):
    """Create the evaluation task."""
    signature = sign_plan(world.OWNER, P, sha256_hex(data)).hex()
    client.post("/plans", data, BlobRef, signature=signature)
    wanted = TaskWanted(
        task="measure", kind="evaluate", plan=sha256_hex(data), signature=signature, settings={"every": 2}
    )
    return client.post("/tasks", wanted, TaskStatus)


def test_training_and_evaluation_take_turns_and_both_survive_a_kill(directory, tmp_path, _plans):
    with parts.served(directory) as served, devices(served, directory, tmp_path):
        with admin(served, directory) as client:
            assert evaluate(client, _plans[1]).state == "running"
        status = status_when(served, directory, lambda s: len(committed(s, "evaluate")) >= 2)
        served.send_signal(signal.SIGKILL)
        served.wait(30)
    trained, measured = committed(status, "train"), committed(status, "evaluate")
    models = {r.checkpoint for r in trained}
    for row in measured[1:]:
        assert row.checkpoint in models and row.task == "measure" and 2 <= row.reported <= COUNT
        assert 0 < row.metrics["loss"] < 2 and 0 <= row.metrics["correct"] <= 1
    # Two versions lie between two evaluations.
    kinds = [r.kind for r in status.rounds if r.status == "committed"]
    first, second = [i for i, kind in enumerate(kinds) if kind == "evaluate"][:2]
    assert kinds[first + 1 : second] == ["train"] * 2
    with parts.served(directory) as served, admin(served, directory) as client:
        details = client.details()
        assert [(t.task, t.state) for t in details.tasks] == [("train", "running"), ("measure", "running")]
        assert details.tasks[1].rounds >= len(measured) and details.round >= len(trained)
        with devices(served, directory, tmp_path):
            status_when(served, directory, lambda s: len(committed(s, "evaluate")) > len(measured))


def test_a_roll_back_under_load_is_a_new_version_and_training_goes_on(directory, tmp_path):
    with parts.served(directory) as served, devices(served, directory, tmp_path), admin(served, directory) as client:
        status_when(served, directory, lambda s: s.round >= 3)
        assert change(client, "rollback", 2).state == "running"
        status = status_when(served, directory, lambda s: [r.status for r in s.rounds[-2:]].count("committed") == 2)
        back = next(r for r in status.rounds if r.status == "rolled_back")
        by_number = {r.round: r for r in status.rounds if r.status == "committed"}
        assert back.checkpoint == by_number[2].checkpoint and back.round not in by_number
        moved = [r.round for r in status.rounds if r.status != "abandoned"]
        assert moved == list(range(1, len(moved) + 1))  # versions move forward, one at a time
        assert change(client, "pause").state == "paused"
        status_when(served, directory, lambda s: s.state == "paused")
        assert change(client, "resume").state == "running"
        assert client.details().state == "selecting"  # devices that were told so come again within a minute


def test_another_program_that_locks_the_database_costs_rounds_and_not_the_server(directory, tmp_path):
    with parts.served(directory) as served, devices(served, directory, tmp_path), admin(served, directory) as client:
        before = status_when(served, directory, lambda s: s.round >= 1).round
        other = sqlite3.connect(directory / "data" / "server.db", isolation_level=None, timeout=30)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CoveyError) as caught:
            change(client, "pause")
        assert caught.value.code == "storage_locked"
        client.details()  # reading goes on
        other.execute("ROLLBACK")
        other.close()
        assert client.details().tasks[0].state == "running"
        after = status_when(served, directory, lambda s: s.round > before + 1)
        numbers = [r.round for r in after.rounds if r.status == "committed"]
        assert numbers == list(range(1, len(numbers) + 1))
