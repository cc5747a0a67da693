"""A base install is a device: without JAX, ONNX or any server package it takes part in a real, secure round."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "simulation" / "tiny.py"
ABSENT = ("jax", "jaxlib", "onnx", "optax", "starlette", "uvicorn", "PIL", "torch")


@pytest.fixture(scope="module")
def device_python(tmp_path_factory):
    """Return the Python of a new environment with ``pip install .`` and nothing else."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode and re.search(r"No matching distribution|Connection|Temporary failure", done.stderr):
        pytest.skip("needs a package index: pip could not download the dependencies of a base install")
    assert done.returncode == 0, done.stderr
    return python


def test_a_base_install_takes_part_in_a_round(device_python, tmp_path):
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    probe = f"import importlib.util as u; print([m for m in {ABSENT!r} if u.find_spec(m)])"
    found = subprocess.run([device_python, "-c", probe], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert found.stdout == "[]\n", "this environment has more than a base install"
    covey = [sys.executable, "-m", "covey"]
    fed = tmp_path / "fed"
    init = [*covey, "init", fed, "--recipe", TINY, "--cohort", "3", "--min-cohort", "3", "--port", "0"]
    subprocess.run(init, check=True, capture_output=True)
    homes = [tmp_path / f"home-{i}" for i in range(3)]
    with subprocess.Popen([*covey, "serve", "--dir", fed / "server"], stdout=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"https://\S+:\d+", server.stdout.readline()).group()
            device = [device_python, "-m", "covey", "device"]
            for i, home in enumerate(homes):
                array = tmp_path / f"{i}.npz"
                make = "import numpy as np, sys; r = np.random.default_rng(0); np.savez(sys.argv[1], x=r.random((8, 4), np.float32), y=np.ones(8, np.int32))"  # noqa: E501
                subprocess.run([device_python, "-c", make, array], check=True, env=env, cwd=tmp_path)
                fill = [*device, "fill", "--home", home, "--plan", fed / "server" / "plan.covey", "--npz", array]
                subprocess.run(fill, check=True, env=env, cwd=tmp_path, capture_output=True)
            run = [*device, "run", "--server", url, "--population", "blobs", "--once"]
            run += ["--min-cohort", "3", "--owner-key", fed / "owner" / "owner.pub"]
            run += ["--ca", fed / "server" / "authority" / "ca.pem"]
            run += [a for h in homes for a in ("--home", h)]
            done = subprocess.run(run, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("counted 8 examples, 2 steps") == 3
            assert "round 1 committed" in server.stdout.readline()
        finally:
            server.terminate()


def test_what_needs_an_extra_says_which(device_python, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    serve = [device_python, "-m", "covey", "serve", "--dir", tmp_path]
    done = subprocess.run(serve, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 1 and "pip install 'covey[server]'" in done.stderr
    build = [device_python, "-m", "covey", "plan", "build", TINY, "-o", "plan"]
    env["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run(build, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 1 and "pip install 'covey[train]'" in done.stderr
