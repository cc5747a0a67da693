"""``simulate --out/--resume/--report/--calibrate``, ``compare`` and ``sweep``, as they are typed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from covey.types.errors import UsageError

from .conftest import TINY


@dataclass
class Printed:
    out: str
    err: str


@pytest.fixture
def typed(covey):
    """Return a function that runs a command, checks how it ends, and returns what it printed."""

    def run(*args, status=0):
        done = covey(*args)
        assert done.returncode == status, done.stderr
        return Printed(done.stdout, done.stderr)

    return run


def test_a_run_is_kept_resumed_compared_and_shown(typed, tmp_path):
    pytest.importorskip("matplotlib", reason="needs covey[report]")
    first, second = tmp_path / "first", tmp_path / "second"
    page = tmp_path / "page.html"
    out = typed("simulate", TINY, "--rounds", "2", "--workers", "1", "--out", str(first), "--report", str(page)).out
    assert "2 rounds" in out and page.read_text().startswith("<!doctype html>")
    again = json.loads(typed("simulate", "--resume", str(first), "--rounds", "3", "--json", "-").out)
    assert [r["round"] for r in again["rounds"]] == [1, 2, 3]
    typed("simulate", TINY, "--rounds", "3", "--workers", "1", "--out", str(second), "--algorithm", "fedprox:mu=0.5")
    shown = typed("compare", str(first), str(second), "--target", "0.8", "--report", str(tmp_path / "both.html")).out
    assert "rounds to 80.0 %" in shown and "fedprox:mu=0.5" in shown
    rows = json.loads(typed("compare", str(first), str(second), "--json", "-").out)
    assert [r["rounds"] for r in rows] == [3, 3] and rows[0]["name"] == "first"
    refused = typed("simulate", "--resume", str(first), "--lr", "0.01", status=1)
    assert "settings.lr" in refused.err and "0.3" in refused.err


def test_a_slow_network_is_typed_shown_and_compared(typed, tmp_path):
    network = ("--down-mbit-per-s", "0.1", "--up-mbit-per-s", "0.01", "--network-spread", "0.5")
    common = ("simulate", TINY, "--rounds", "2", "--workers", "1")
    out = typed(*common, *network, "--out", str(tmp_path / "slow")).out
    assert "virtual time" in out and "upload" in out and "waiting" in out
    assert "devices' time" not in typed(*common, "--out", str(tmp_path / "free")).out
    shown = typed("compare", str(tmp_path / "slow"), str(tmp_path / "free"), "--target", "0.3").out
    head = shown.splitlines()[0]
    assert all(w in head for w in ("up_mbit_per_s", "network_spread", "network", "waiting", "virtual s to"))
    refused = typed(*common, "--up-mbit-per-s", "-3", status=2).err
    assert "--up-mbit-per-s" in refused and "-3" in refused
    refused = typed("simulate", "--resume", str(tmp_path / "slow"), "--up-mbit-per-s", "1", status=1).err
    assert "options.up_mbit_per_s" in refused


def test_a_sweep_goes_on_where_it_stopped(typed, tmp_path):
    arguments = ("sweep", TINY, "--grid", "lr=0.1,0.3", "--rounds", "2", "--workers", "1", "--out", str(tmp_path / "s"))
    result = json.loads(typed(*arguments, "--json", "-").out)
    assert [r["differs"]["lr"] for r in result["runs"]] == [0.1, 0.3] and result["failed"] == {}
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*/report.json")}
    assert len(stamps) == 2
    out = typed(*arguments[:2], "--grid", "lr=0.1,0.3,300", "--epochs", "1", *arguments[4:]).out
    assert "lr=300" in out and "lr=0.1: 2 rounds" in out
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps  # read, not run again
    refused = typed(*arguments, "--cohort", "3", status=1)
    assert "settings.cohort" in refused.err


@pytest.mark.parametrize("grid, words", [("lrr=1,2", ["lr"]), ("lr=0.1,-1", ["--lr", "above 0"])])
def test_a_grid_that_cannot_be_is_refused_before_anything_runs(typed, tmp_path, grid, words):
    refused = typed("sweep", TINY, "--grid", grid, "--rounds", "1", "--out", str(tmp_path), status=2)
    assert all(w in refused.err for w in words), refused.err
    assert list(tmp_path.iterdir()) == [] and refused.out == ""


@pytest.mark.parametrize(
    "grid, words",
    [
        ("lr", ["NAME=VALUE"]),
        ("cohort=many", ["int"]),
        ("algorithm=fedavg,fedprx", ["fedprox"]),
        ("lr=0.1,0.10", ["each once"]),
        ("lr=", ["values"]),
        ("compression=float32,hd|edden:1", ["eden"]),
        ("download=quantize:8,hd|eden:1", ["quantize:B"]),
        ("up-mbit-per-s=1,-2", ["--up-mbit-per-s"]),
        ("over-selection=1,0.5", ["--over-selection"]),
        ("report-timeout=1,0", ["--report-timeout"]),
        ("up-mbits=1,2", ["up_mbit_per_s"]),
    ],
)
def test_every_point_of_a_grid_is_checked_before_the_first_runs(tmp_path, grid, words):
    from covey.recipes.recipe import load_recipe
    from covey.simulation.run import SimulationOptions
    from covey.simulation.sweep import parse_grid, sweep

    own = load_recipe(TINY).settings
    with pytest.raises(UsageError) as caught:
        sweep(
            TINY, lambda values: dataclasses.replace(own, **values), SimulationOptions(rounds=1, workers=1),
            parse_grid([grid]), tmp_path, pytest.fail, pytest.fail,
        )  # fmt: skip
    told = " ".join((caught.value.where, caught.value.expected, caught.value.hint))
    assert all(w in told for w in words), told


def test_a_grid_may_have_networks_and_a_point_that_fails_does_not_end_it(typed, tmp_path):
    grid = ("--grid", "up-mbit-per-s=0.001,0.01", "--grid", "cohort=3,30")
    out = typed("sweep", TINY, *grid, "--rounds", "2", "--workers", "1", "--out", str(tmp_path)).out
    assert out.count("failed: --cohort") == 2 and "12 devices" in out
    table = out.split("\n\n")[1].splitlines()
    assert "up_mbit_per_s" in table[0] and "network" in table[0] and len(table) == 3
    twice = typed("sweep", TINY, *grid, "--up-mbit-per-s", "1", "--out", str(tmp_path), status=2).err
    assert "no other option sets" in twice and "up_mbit_per_s" in twice


def test_compare_refuses_a_target_that_is_no_fraction(typed, tmp_path):
    assert "--target" in typed("compare", str(tmp_path), "--target", "97", status=2).err


def test_ctrl_c_stops_without_a_traceback_and_says_how_to_go_on(tmp_path):
    """The signal goes to the whole process group, as a terminal sends it."""
    arguments = ["simulate", TINY, "--rounds", "100000", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "covey", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until_s = time.monotonic() + 60
        while not any(f.read_bytes().count(b"\n") > 3 for f in tmp_path.rglob("rounds.jsonl")):
            assert time.monotonic() < until_s and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130
    assert "Traceback" not in err and "--resume" in err and "covey: stopped" in err


def test_grids_with_commas_in_their_values_and_with_infinity():
    from covey.simulation.sweep import parse_grid

    cells = parse_grid(["algorithm=fedavg;fedadam:beta1=0.8,tau=1e-2", "batch=10,inf", "seed=1"])
    assert [tuple(c.values.values()) for c in cells] == [
        ("fedavg", 10, 1),
        ("fedavg", None, 1),
        ("fedadam:beta1=0.8,tau=1e-2", 10, 1),
        ("fedadam:beta1=0.8,tau=1e-2", None, 1),
    ]
    assert len({c.name for c in cells}) == 4 and all("/" not in c.name for c in cells)


def test_nothing_to_simulate_is_a_usage_error(typed):
    assert "RECIPE" in typed("simulate", status=2).err


def test_calibration_falls_back_from_what_ends_its_process(monkeypatch):
    """A worker that is out of memory is noted, and the others are measured."""
    from covey.recipes.recipe import load_recipe
    from covey.simulation import calibration
    from covey.types.errors import WorkerError

    def timed(name, *rest):
        if name == "jax-loop":
            raise WorkerError("worker 1", expected="a process that lives", got="one that ended with status -9")
        if name == "jax-step":
            raise RuntimeError("a worker failed:\nXlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory")
        return calibration.Measured(name, 100.0, 0.1)

    monkeypatch.setattr(calibration, "_timed", timed)
    result = calibration.calibrate(TINY, load_recipe(TINY).settings)
    assert result.suggested == "onnx" and "jax-step" in result.note and "jax-loop" in result.note
    assert [m.failed for m in result.measured] == [
        "out of memory",
        "its process ended: one that ended with status -9",
        "",
    ]
