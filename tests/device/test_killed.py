"""kill -9 at every step of a session, then a restart: nothing is lost, nothing is sent twice, and the chain holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from covey.device.home import DeviceHome
from covey.device.recorder import INTERRUPTED
from covey.plans.signing import sign_plan
from covey.types.tensors import sha256_hex

from . import world


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    data = world.plan_bytes()
    (folder / "plan").write_bytes(data)
    (folder / "checkpoint").write_bytes(world.checkpoint())
    (folder / "key").write_bytes(world.OWNER.public_key().public_bytes_raw())
    (folder / "signature").write_text(sign_plan(world.OWNER, world.POPULATION, sha256_hex(data)).hex())
    with DeviceHome(folder / "filled") as home:
        home.examples.add_many("points", world.points(13), world.SCHEMA)
    script = Path(__file__).with_name("kill_everywhere.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["step"] for f in found] == list(range(1, found[0]["of"] + 1)) and len(found) > 30
    return found


def test_the_store_is_intact_and_the_chain_holds(outcomes):
    for found in outcomes:  # the script has verified the chain
        assert found["examples"] == 13 and found["intact"], found["step"]


def test_no_session_is_sent_twice(outcomes):
    for found in outcomes:
        sessions = [session for session, _ in found["uploads"]]
        assert 1 <= len(sessions) == len(set(sessions)) <= 2, found["step"]
    assert {len(f["uploads"]) for f in outcomes} == {1, 2}


def test_whatever_arrived_stood_in_the_ledger_before(outcomes):
    for found in outcomes:
        said = {(session, digest) for kind, session, digest, _ in found["entries"] if kind == "sending"}
        assert {tuple(u) for u in found["uploads"]} <= said, found["step"]


def test_a_killed_session_is_closed_when_the_device_starts_again(outcomes):
    for found in outcomes:
        last = {session: (kind, reason) for kind, session, _, reason in found["entries"]}
        kinds = [kind for kind, _ in last.values()]
        assert kinds[-1] == "counted" and set(kinds) <= {"lost", "counted"}, found["step"]
        assert all(reason == INTERRUPTED for kind, reason in last.values() if kind == "lost"), found["step"]
    assert any(kind == "lost" for f in outcomes for kind, *_ in f["entries"])


def test_nothing_half_written_is_left(outcomes):
    for found in outcomes:
        assert all(len(name) == 64 for name in found["blobs"]), found["step"]
