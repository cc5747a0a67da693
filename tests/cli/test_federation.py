"""A server and devices in processes of their own, as the README shows them in two terminals."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest


@contextlib.contextmanager
def running(*args):
    """Run the command line in the background; whatever happens, it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "covey", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_with(process, word):
    """Return the first line of a process that holds ``word``; its end is a failure."""
    for line in process.stdout:
        if word in line:
            return line
    raise AssertionError(process.stderr.read())


@pytest.fixture
def world(covey, tiny, tmp_path):
    """A population for two devices a round, and three devices with examples."""
    done = covey(
        "init",
        tmp_path / "fed",
        "--recipe",
        tiny,
        "--plain",
        "--cohort",
        2,
        "--min-cohort",
        1,
        "--port",
        0,
        "--host",
        "localhost",
    )
    assert done.returncode == 0, done.stderr
    for i in range(3):
        filled = covey("device", "fill", "--home", tmp_path / f"home-{i}", "--recipe", tiny, "--client", i + 4)
        assert filled.returncode == 0, filled.stderr
        assert f"{i + 7} examples to train on, 20 held out" in filled.stdout
    return tmp_path


def device_args(world, url, *homes, once=False, population="blobs"):
    out = ["device", "run", "--server", url, "--population", population, "--accept-plain", "--min-cohort", "1"]
    out += ["--owner-key", world / "fed/owner/owner.pub", "--ca", world / "fed/server/authority/ca.pem"]
    out += [a for h in homes for a in ("--home", world / h)]
    return [*out, *(["--once"] if once else [])]


def url_of(line):
    return re.search(r"https://\S+:\d+", line).group()


def test_two_terminals(covey, world):
    """serve in one, devices in others; --once ends after one counted update; Ctrl-C ends the server well."""
    with running("serve", "--dir", world / "fed/server") as server:
        url = url_of(line_with(server, "serving population 'blobs'"))
        done = covey(*device_args(world, url, "home-0", "home-1", once=True))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("round 1: counted") == 2
        assert "round 1 committed" in line_with(server, "round 1")
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=10) == 0
    modes = {p.name: p.stat().st_mode & 0o777 for p in (world / "fed/owner").iterdir()}
    assert modes["owner.key"] == 0o600


def test_a_killed_server_resumes_at_the_last_committed_round(world):
    with running("serve", "--dir", world / "fed/server") as server:
        url = url_of(line_with(server, "serving"))
        config = world / "fed/server/server.toml"
        config.write_text(re.sub(r"port = 0", f"port = {url.rpartition(':')[2]}", config.read_text()))
        with running(*device_args(world, url, "home-0", "home-1", "home-2")) as devices:
            for number in (1, 2, 3):
                line_with(server, f"round {number} committed")
            server.kill()
            seen = [int(n) for n in re.findall(r"round (\d+) committed", server.communicate()[0])]
            last = max([3, *seen])
            with running("serve", "--dir", world / "fed/server") as again:
                resumed = int(re.search(r"round (\d+)", line_with(again, "serving")).group(1))
                # A round may have been committed whose line was never printed, never the other way round.
                assert last <= resumed <= last + 1
                assert f"round {resumed + 1} committed" in line_with(again, "committed")
            devices.send_signal(signal.SIGTERM)
            assert devices.wait(timeout=15) == 128 + signal.SIGTERM


def test_a_device_refuses_what_its_owner_did_not_accept(covey, world):
    """Another owner's plans, plain mode without consent, and cohorts below its own minimum."""
    from covey.plans.signing import generate_owner_key, public_key_pem

    (world / "other.pub").write_bytes(public_key_pem(generate_owner_key().public_key()))
    with running("serve", "--dir", world / "fed/server") as server:
        url = url_of(line_with(server, "serving"))
        good = device_args(world, url, "home-0", "home-1", "home-2", once=True)
        foreign = [world / "other.pub" if a == world / "fed/owner/owner.pub" else a for a in good]
        unwilling = [a for a in good if a != "--accept-plain"]
        careful = ["100" if a == "1" else a for a in good]
        for args, code in ((foreign, "plan_signature"), (unwilling, "plan_refused"), (careful, "plan_refused")):
            done = covey(*args)
            assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
            assert code in done.stderr


def test_wrong_addresses_and_names_are_errors(covey, world):
    with running("serve", "--dir", world / "fed/server") as server:
        url = url_of(line_with(server, "serving"))
        done = covey(*device_args(world, url, "home-0", population="nobody", once=True))
        assert done.returncode == 1 and "not_found" in done.stderr
        done = covey(*device_args(world, "ftp://x", "home-0", once=True))
        assert done.returncode == 2 and "https://" in done.stderr
        port = url.rpartition(":")[2]
        config = world / "fed/server/server.toml"
        config.write_text(re.sub(r"port = 0", f"port = {port}", config.read_text()))
        taken = covey("serve", "--dir", world / "fed/server")
        assert taken.returncode == 1 and "port_in_use" in taken.stderr


def test_your_own_arrays_go_on_a_device(covey, world):
    rng = np.random.default_rng(0)
    plan = world / "fed/server/plan.covey"
    np.savez(world / "good.npz", x=rng.random((9, 4), np.float32), y=np.zeros(9, np.int32))
    np.savez(world / "wrong.npz", x=rng.random((9, 5), np.float32), y=np.zeros(9, np.int32))
    done = covey("device", "fill", "--home", world / "new", "--plan", plan, "--npz", world / "good.npz")
    assert (done.returncode, "9 examples" in done.stdout) == (0, True), done.stderr
    done = covey("device", "fill", "--home", world / "new", "--plan", plan, "--npz", world / "wrong.npz")
    assert done.returncode == 1 and "float32 [n, 4]" in done.stderr and "float32 [9, 5]" in done.stderr


def test_an_existing_population_is_not_overwritten(covey, world, tiny):
    before = (world / "fed/owner/owner.key").read_bytes()
    done = covey("init", world / "fed", "--recipe", tiny, "--plain", "--cohort", 2, "--min-cohort", 1)
    assert done.returncode == 2
    assert (world / "fed/owner/owner.key").read_bytes() == before


def test_a_cohort_below_the_minimum_is_refused_before_anything_is_written(covey, tiny, tmp_path):
    done = covey("init", tmp_path / "new", "--recipe", tiny, "--cohort", 5)
    assert done.returncode == 2 and "at least 143" in done.stderr
    assert not (tmp_path / "new").exists()


def children_of(pid, word):
    return [p for p in psutil.Process(pid).children(recursive=True) if word in " ".join(p.cmdline())]


@pytest.fixture
def demo(tmp_path):
    with running(
        "demo", "--devices", "8", "--rounds", "25", "--no-prompt", "--dir", tmp_path / "demo", "--json",
        tmp_path / "report.json",
    ) as process:  # fmt: skip
        yield process, tmp_path


def test_the_demo_survives_killed_devices_and_a_killed_server(demo):
    process, folder = demo
    line_with(process, "round  selected")
    line_with(process, "    2  ")  # the row of the round, committed or not
    children_of(process.pid, "device run")[0].kill()
    line_with(process, "    8  ")
    children_of(process.pid, "serve")[0].kill()
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    report = json.loads((folder / "report.json").read_text())
    assert [r["round"] for r in report["rounds"]] == list(range(1, 26))
    assert report["restarts"] == 2
    assert set(report["table"]) == {"federated", "constant", "local", "local_own", "central"}
    assert report["table"]["federated"] > report["table"]["constant"]
    assert "was started again" in out
    stores = list((folder / "demo" / "devices").glob("*/examples.db"))
    assert len(stores) == 8


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_demo(demo, kind):
    process, _ = demo
    line_with(process, "   2 ")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 5  # a server and four processes of devices
    os.kill(process.pid, kind)
    process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[kind]
    until = time.monotonic() + 15
    while alive := [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < until, alive
        time.sleep(0.1)
