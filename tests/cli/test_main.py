import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command",
    [[], *([c, "--help"] for c in ("demo", "simulate", "init", "serve", "device", "plan", "data"))]
    + [["device", c, "--help"] for c in ("run", "fill")]
    + [["plan", c, "--help"] for c in ("build", "inspect", "check", "diff")],
)
def test_every_command_has_a_help_text(covey, command):
    done = covey(*(command or ["--help"]))
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: covey")
    assert "  " in done.stdout.split("\n", 2)[2]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["simulate", "keybord"], ["recipe", "expected  one of", "got       keybord", "did you mean keyboard?"]),
        (["simulate", "./nowhere.py"], ["no such file: ./nowhere.py"]),
        (["simulate", "keyboard", "--cohort", "25"], ["--cohort", "24 devices", "got       25"]),
        (["simulate", "keyboard", "--algorithm", "fedmagic"], ["--algorithm", "fedmagic", "fedavg"]),
        (["simulate", "keyboard", "--rounds", "0"], ["--rounds", "at least 1"]),
        (["simulate", "keyboard", "--partition", "iid"], ["--partition", "role for shakespeare"]),
        (["simulate", "keyboard", "--batch", "many"], ["neither a whole number nor inf"]),
        (["simulate"], ["RECIPE", "--resume RUNDIR"]),
        (["simulte"], ["No such command 'simulte'"]),
        (["demo", "--devices", "2"], ["--devices", "at least 8"]),
        (["demo", "--rounds", "0"], ["--rounds", "at least 1"]),
        (["serve", "--dir", "/nowhere/at/all"], ["--dir", "does not exist"]),
        (["device", "fill", "--home", "x"], ["--recipe with --client, or --plan with --npz"]),
        (["plan", "inspect", "missing.covey"], ["plan missing.covey", "a readable file"]),
        (["plan", "build", "keyboard", "-o", "x", "--population", "p"], ["--sign-with and --population"]),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(covey, args, words, tmp_path):
    done = covey(*args)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_a_missing_data_set_says_what_to_do(covey, tmp_path):
    done = covey("simulate", "mnist-2nn", COVEY_DATA=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "covey data fetch mnist" in done.stderr and "COVEY_DATA" in done.stderr
    assert "dataset_missing" in done.stderr


def test_a_missing_extra_names_what_to_install(covey, tmp_path, tiny):
    (tmp_path / "jax.py").write_text("raise ModuleNotFoundError('no jax', name='jax')")
    done = covey("plan", "build", tiny, "-o", tmp_path / "plan", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "pip install 'covey[train]'" in done.stderr


def test_data_sets_are_listed(covey):
    done = covey("data", "list")
    assert done.returncode == 0
    assert {"shakespeare", "mnist", "cifar10"} <= set(done.stdout.split())


def test_the_embedded_set_needs_no_download(covey):
    done = covey("data", "fetch", "shakespeare")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_that_cannot_be_written_is_an_error(covey, tiny, tmp_path):
    done = covey("plan", "build", tiny, "-o", tmp_path / "no" / "such" / "folder")
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr


def test_an_output_is_written_whole_or_not_at_all(tmp_path):
    old = tmp_path / "report.json"
    old.write_bytes(b"old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "  # as a full disk does
    write = "from covey.cli.output import write_file; from pathlib import Path; write_file(Path({!r}), bytes({}))"
    for path in (old, tmp_path / "new.json"):
        failed = subprocess.run([sys.executable, "-c", limit + write.format(str(path), 2000)], capture_output=True)
        assert b"StorageFullError" in failed.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"report.json": b"old"}
    subprocess.run([sys.executable, "-c", limit + write.format(str(old), 900)], check=True)
    assert old.read_bytes() == bytes(900)


def test_an_error_in_a_recipe_shows_the_readers_own_lines(covey, tmp_path):
    recipe = tmp_path / "broken.py"
    recipe.write_text("def task():\n    return 1 / 0\n\n\nrecipe = task()\n")
    done = covey("simulate", recipe)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "line 2, in task" in done.stderr
    assert "/covey/" not in done.stderr and "runpy" not in done.stderr
