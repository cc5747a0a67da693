import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

FIELDS = {
    "recipe", "algorithm", "seed", "mode", "versions", "rounds", "target_round", "client_steps", "seconds",
    "bytes_up", "bytes_down",
}  # fmt: skip
ROUND_FIELDS = {"at_s",
    "round", "accuracy", "loss", "bytes_up", "bytes_down", "selected", "reported", "lost", "seconds",
}  # fmt: skip


def test_json_on_stdout_is_one_object_and_nothing_else(covey, tiny):
    done = covey("simulate", tiny, "--rounds", 2, "--workers", 1, "--json", "-")
    report = json.loads(done.stdout)
    assert report.keys() >= FIELDS
    assert all(r.keys() == ROUND_FIELDS for r in report["rounds"])
    assert report["mode"] == "plain" and report["target_round"] is None
    assert report["bytes_up"] == sum(r["bytes_up"] for r in report["rounds"])


def test_flags_replace_the_settings_of_a_recipe(covey, tiny, tmp_path):
    file = tmp_path / "report.json"
    done = covey(
        "simulate", tiny, "--rounds", 1, "--cohort", 3, "--epochs", 2, "--batch", "inf", "--lr", 0.05, "--trainer",
        "jax", "--seed", 5, "--workers", 1, "--algorithm", "fedavg", "--json", file, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    settings = report["settings"]
    assert (settings["cohort"], settings["epochs"], settings["batch_size"], settings["lr"]) == (3, 2, None, 0.05)
    assert report["rounds"][0]["reported"] == 3
    assert report["client_steps"] == 3 * 2  # one batch of everything, twice
    assert "kept in" in done.stdout and (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_target_stops_the_run_and_is_printed(covey, tiny):
    done = covey("simulate", tiny, "--target", 0.6, "--workers", 1)
    assert "target 60.0 %: reached in round" in done.stdout


def test_divergence_is_a_failure_with_a_cause(covey, tiny):
    done = covey("simulate", tiny, "--lr", 299, "--epochs", 60, "--rounds", 40, "--workers", 1)
    assert done.returncode == 1
    assert "round" in done.stderr and "learning rate" in done.stderr and "training_not_finite" in done.stderr


def test_an_error_in_a_users_file_shows_the_users_line(covey, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import covey\nx = 1 / 0\n")
    done = covey("simulate", file)
    assert done.returncode == 1
    assert 'broken.py", line 2' in done.stderr


def test_a_file_without_a_recipe_is_refused(covey, tmp_path):
    file = tmp_path / "empty.py"
    file.write_text("")
    done = covey("simulate", file)
    assert done.returncode == 2 and "recipe = covey.recipes.Recipe(...)" in done.stderr


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_run(tiny, kind):
    run = subprocess.Popen(
        [sys.executable, "-m", "covey", "simulate", tiny, "--rounds", "100000", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.split()[:1] == ["3"]:
            break
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) == 2
    os.kill(run.pid, kind)
    run.communicate(timeout=20)
    assert run.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    until = time.monotonic() + 10
    while any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
        assert time.monotonic() < until, "a worker is still there"
        time.sleep(0.05)
