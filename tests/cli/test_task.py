"""``covey population`` and ``covey task`` against a server in a process of its own."""

import json
import time

import pytest
from device import world
from server import parts

from covey.plans.evaluation import evaluation_plan
from covey.plans.signing import public_key_pem, sign_plan
from covey.types.tensors import sha256_hex


@pytest.fixture(scope="module")
def _plans():
    return world.plan_bytes(), evaluation_plan(world.plan())


@pytest.fixture
def files(tmp_path, _plans):
    """Write what an owner hands to whoever runs the server."""
    for name, data in zip(("train", "measure"), _plans, strict=True):
        (tmp_path / f"{name}.covey").write_bytes(data)
        signature = sign_plan(world.OWNER, parts.POPULATION, sha256_hex(data)).hex()
        (tmp_path / f"{name}.covey.sig").write_text(signature + "\n")
    (tmp_path / "first.bin").write_bytes(world.checkpoint())
    (tmp_path / "owner.pub").write_bytes(public_key_pem(world.OWNER.public_key()))
    return tmp_path


@pytest.fixture
def begun(files, covey):
    """Make a population without a task; return its directory."""
    made = covey(
        "population", "create", files / "server", "--population", parts.POPULATION, "--owner-key", files / "owner.pub",
        "--checkpoint", files / "first.bin", "--goal", 2, "--port", 0,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert f"covey serve --dir {files / 'server'}" in made.stdout
    return files / "server"


def test_a_population_gets_its_tasks_from_whoever_has_the_token(files, begun, covey):
    with parts.served(begun) as served:

        def ask(*args, fails=False):
            done = covey(*args, "--server", served.url, "--dir", begun)
            assert (done.returncode != 0) is fails, done.stderr or done.stdout
            return done.stderr if fails else done.stdout

        assert "no task yet" in ask("population", "show")
        out = ask("task", "create", "first", "--plan", files / "train.covey", "--rounds", 5, "--hyper", "lr=0.5")
        assert "first" in out and "0/5" in out and "round.hyper = {'lr': 0.5}" in out
        made = json.loads(
            ask(
                "task",
                "create",
                "measure",
                "--kind",
                "evaluate",
                "--plan",
                files / "measure.covey",
                "--json",
                "--every",
                3,
            )
        )
        assert (made["state"], made["settings"]["every"], made["settings"]["round"]["goal"]) == ("running", 3, 2)
        listed = json.loads(ask("task", "list", "--json"))
        assert [(t["task"], t["kind"]) for t in listed] == [("first", "train"), ("measure", "evaluate")]
        assert "paused" in ask("task", "pause", "first")
        assert "running" in ask("task", "resume", "first")
        assert "cancelled" in ask("task", "cancel", "measure")
        assert "round.goal = 2" in ask("task", "show", "first")
        text = ask("task", "resume", "measure", fails=True)
        assert "task_state" in text and "got       task 'measure': expected created or paused" in text
        assert "not_found" in ask("task", "rollback", "first", "--to", 7, fails=True)
        assert "not_found" in ask("task", "show", "nobody", fails=True)
        found = json.loads(ask("population", "show", "--json"))
        assert (found["population"], found["round"], len(found["tasks"])) == (parts.POPULATION, 0, 2)
        assert "first" in ask("population", "show")
    with parts.served(begun) as again:  # and there they are after a kill
        done = covey("task", "list", "--server", again.url, "--dir", begun)
        assert "running" in done.stdout and "cancelled" in done.stdout


def test_a_task_of_a_plan_that_another_signed_is_told_at_once(files, begun, covey):
    with parts.served(begun) as served:
        other = sign_plan(world.OWNER, "another population", sha256_hex(world.plan_bytes())).hex()
        (files / "bad.sig").write_text(other)
        done = covey(
            "task", "create", "t", "--plan", files / "train.covey", "--signature", files / "bad.sig",
            "--server", served.url, "--dir", begun,
        )  # fmt: skip
        assert done.returncode == 1 and "plan_signature" in done.stderr


def test_a_wrong_token_and_a_wrong_authority_are_told_apart(files, begun, covey):
    with parts.served(begun) as served:
        (files / "token").write_text("x" * 43)
        where = ("--server", served.url, "--ca", begun / "authority" / "ca.pem")
        assert "unauthorized" in covey("task", "list", *where, "--token-file", files / "token").stderr
        where = ("--server", served.url, "--token-file", begun / "admin.token")
        assert "unreachable" in covey("task", "list", *where).stderr  # the system's authorities do not know it


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("task", "list"), "--server URL"),
        (("task", "list", "--server", "https://localhost:1"), "--token-file FILE"),
        (("population", "show", "--dir", "DIR"), "port = 0"),
        (("task", "list", "--dir", "DIR", "--server", "http://localhost:1"), "https://host:port"),
        (("task", "create", "t", "--plan", "PLAN", "--set", "pause_s", "--dir", "DIR"), "NAME=NUMBER"),
        (("task", "create", "t", "--plan", "PLAN", "--until", "tomorrow", "--dir", "DIR"), "2026-01-31T08:00"),
        (("task", "create", "t", "--plan", "MISSING", "--dir", "DIR"), "a readable file"),
    ],
)
def test_what_is_typed_wrong_is_told(files, begun, covey, args, text):
    (begun / "admin.token").write_text("x" * 43)
    names = {"DIR": begun, "PLAN": files / "train.covey", "MISSING": files / "missing.covey"}
    done = covey(*(names.get(a, a) for a in args))
    assert done.returncode == 2 and text in done.stderr, done.stderr


def test_no_server_there(files, begun, covey):
    (begun / "admin.token").write_text("x" * 43)
    (begun / "authority").mkdir()
    (begun / "authority" / "ca.pem").write_bytes(_some_authority())
    done = covey("task", "list", "--dir", begun, "--server", "https://localhost:1")
    assert done.returncode == 1 and "unreachable" in done.stderr and "covey serve" in done.stderr


def _some_authority():
    import tempfile
    from pathlib import Path

    from covey.server.authority import ensure_authority

    with tempfile.TemporaryDirectory() as path:
        ensure_authority(Path(path) / "a")
        return (Path(path) / "a" / "ca.pem").read_bytes()


def test_a_directory_is_begun_once(files, begun, covey):
    done = covey(
        "population", "create", begun, "--population", "p", "--owner-key", files / "owner.pub",
        "--checkpoint", files / "first.bin",
    )  # fmt: skip
    assert done.returncode == 2 and "one with a population in it" in done.stderr


def test_two_servers_do_not_share_a_directory(begun, covey):
    with parts.served(begun):
        start = time.monotonic()
        done = covey("serve", "--dir", begun, timeout=60)
        assert done.returncode == 1 and "storage_locked" in done.stderr and "no other server" in done.stderr
        assert time.monotonic() - start < 60
