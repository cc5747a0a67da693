import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = str(Path(__file__).parent.parent / "simulation" / "tiny.py")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture
def covey():
    """Return a function that runs the command line in a process of its own, as a person does."""

    def run(*args, stdin="", timeout=120, **env):
        return subprocess.run(
            [sys.executable, "-m", "covey", *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **env},
        )

    return run
