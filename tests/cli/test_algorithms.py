"""Algorithms beyond Federated Averaging, through ``init``, ``serve`` and ``device run``: processes, TLS and all."""

import re
import signal

import pytest

from .test_federation import device_args, line_with, running, url_of


def begin(covey, tiny, folder, algorithm):
    done = covey(
        "init", folder / "fed", "--recipe", tiny, "--plain", "--cohort", 2, "--min-cohort", 1, "--port", 0,
        "--host", "localhost", "--algorithm", algorithm,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for i in range(2):
        filled = covey("device", "fill", "--home", folder / f"home-{i}", "--recipe", tiny, "--client", i + 4)
        assert filled.returncode == 0, filled.stderr
    return folder


@pytest.mark.parametrize("algorithm, keeps", [("scaffold:devices=2", True), ("mimelite", False), ("fedadam", False)])
def test_a_deployment_commits_rounds_of_it(covey, tiny, tmp_path, algorithm, keeps):
    world = begin(covey, tiny, tmp_path, algorithm)
    with running("serve", "--dir", world / "fed/server") as server:
        url = url_of(line_with(server, "serving"))
        with running(*device_args(world, url, "home-0", "home-1")) as devices:
            for number in (1, 2, 3):
                assert re.search(rf"round {number} committed", line_with(server, f"round {number} "))
            devices.send_signal(signal.SIGTERM)
            devices.wait(timeout=15)
    kept = [p for i in range(2) for p in (world / f"home-{i}" / "kept").glob("*/*.params")]
    assert [p.stat().st_size for p in kept] == ([15 * 4] * 2 if keeps else [])  # a variate of the model's 15 numbers


def test_a_deployment_commits_buffers_of_an_asynchronous_algorithm(covey, tiny, tmp_path):
    world = begin(covey, tiny, tmp_path, "fedbuff:concurrency=2")
    with running("serve", "--dir", world / "fed/server") as server:
        url = url_of(line_with(server, "serving"))
        with running(*device_args(world, url, "home-0", "home-1")) as devices:
            for number in (1, 2, 3):
                assert re.search(rf"round {number} committed", line_with(server, f"round {number} "))
            devices.send_signal(signal.SIGTERM)
            devices.wait(timeout=15)
        where = ("--server", url, "--dir", world / "fed/server")
        paused = covey("task", "pause", "train", *where)
        assert paused.returncode == 0, paused.stderr
        for command in (("task", "list"), ("population", "show")):
            shown = covey(*command, *where).stdout
            assert re.search(r"train: \d of 2 updates in the buffer, mean staleness \d+\.\d\d; \d devices train", shown)
    assert covey("device", "ledger", "--verify", "--home", world / "home-0").returncode == 0


@pytest.mark.parametrize(
    ("options", "word"), [((), "--plain"), (("--plain", "--privacy", "gaussian:clip=1,noise=1"), "no --privacy")]
)
def test_an_asynchronous_plan_is_refused_where_it_cannot_be_private(covey, tiny, tmp_path, options, word):
    done = covey(
        "init", tmp_path / "fed", "--recipe", tiny, "--cohort", 5, "--min-cohort", 3, "--algorithm", "fedbuff",
        "--rounds", 3, "--devices", 12, *options,
    )  # fmt: skip
    assert done.returncode == 1 and "asynchronous" in done.stderr and word in done.stderr
    assert not (tmp_path / "fed").exists()


def test_more_devices_at_once_than_a_sum_holds_make_a_larger_sum(covey, tiny, tmp_path):
    world = begin(covey, tiny, tmp_path, "fedbuff:concurrency=5000")
    done = covey("plan", "inspect", world / "fed/server/plan.covey")
    assert done.returncode == 0 and "at most 5002 devices" in done.stdout
