"""Parts for the tests of the server: a tiny plan, bodies of updates, and a directory to serve."""

import contextlib
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from device import world

from covey.plans.signing import public_key_pem, sign_plan
from covey.server.aggregator import body_limits
from covey.server.population import begin_population
from covey.server.settings import RoundSettings, TaskSettings, encode_settings
from covey.storage.interface import PopulationRecord
from covey.storage.memory import MemoryStorage
from covey.types.errors import StorageFullError
from covey.types.segments import HEADER
from covey.types.tensors import sha256_hex
from covey.wire.framing import encode_update

POPULATION = world.POPULATION
LENGTH = world.NUM_CLASSES * (1 + world.NUM_FEATURES)
"""Coordinates of the model segment."""


@functools.cache
def manifest():
    return world.plan().manifest


def values(weight: float = 4.0, seed: int = 0, counter: float = 1.0) -> dict[str, np.ndarray]:
    """Return one device's contribution as reals: its header and ``weight`` times a delta."""
    delta = np.random.default_rng(seed).uniform(-1, 1, LENGTH).astype(np.float32)
    header = np.array([counter, weight, weight, 0.5 * weight, weight, 1.0], "<f8")  # examples, loss, weight, correct
    return {HEADER: header, "model": np.float32(weight) * delta}


def body(contribution: dict[str, np.ndarray] | None = None) -> bytes:
    """Frame a contribution as a device does."""
    contribution = values() if contribution is None else contribution
    parts = body_limits(manifest(), 0)
    return encode_update([(name, contribution[name].tobytes()) for name in parts])


TASK = "train"
QUICK = RoundSettings(goal=2, over_selection=1.0, min_fraction=1.0, patience_s=0.0)


def begin(storage, plan: bytes | None = None, rounds: RoundSettings = QUICK):
    """Begin the population in ``storage`` with a training task; return the storage."""
    data = world.plan_bytes() if plan is None else plan
    signature = sign_plan(world.OWNER, POPULATION, sha256_hex(data)).hex()
    begin_population(storage, POPULATION, data, signature, world.checkpoint(), TaskSettings(rounds), TASK)
    return storage


def storage_with_population(**fields) -> tuple[MemoryStorage, PopulationRecord]:
    storage = begin(MemoryStorage())
    return storage, storage.load(POPULATION)


def set_rounds(storage, rounds: RoundSettings, **schedule) -> None:
    """Give the population's first task other settings."""
    task = storage.tasks(POPULATION)[0]
    storage.change_task(POPULATION, task.name, task.state, encode_settings(TaskSettings(rounds, **schedule)))


def write_directory(
    path: Path,
    *,
    goal: int = 2,
    port: int = 0,
    extra: str = "",
    rounds: str = "",
    plan: bytes | None = None,
    min_fraction: float = 1.0,
) -> Path:
    """Write what ``covey serve`` needs for the tiny population; return the directory."""
    path.mkdir(parents=True, exist_ok=True)
    data = world.plan_bytes() if plan is None else plan
    (path / "plan.covey").write_bytes(data)
    (path / "plan.sig").write_text(sign_plan(world.OWNER, POPULATION, sha256_hex(data)).hex() + "\n")
    (path / "checkpoint.bin").write_bytes(world.checkpoint())
    (path / "owner.pub").write_bytes(public_key_pem(world.OWNER.public_key()))
    (path / "server.toml").write_text(
        f'population = "{POPULATION}"\nport = {port}\n{extra}\n'
        f"[round]\ngoal = {goal}\nmin_fraction = {min_fraction}\n{rounds}\n[pace]\nleast_s = 0.05\nmost_s = 30\n"
    )
    return path


@contextlib.contextmanager
def served(directory: Path):
    """Run ``covey serve`` in a process of its own; yield it, with its ``url``. It is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-m", "covey", "serve", "--dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with child:
        try:
            line = child.stdout.readline()
            assert line, child.stderr.read()
            child.greeting = line.strip()
            child.url = line.split(" on ")[1].split(",")[0]
            yield child
        finally:
            child.kill()


def wait_until(holds, timeout_s: float = 30.0) -> None:
    """Return when ``holds()`` is true; fail after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def disk_full() -> StorageFullError:
    """Return the error of a disk without room."""
    return StorageFullError("server.db", expected="room on the disk", got="none")
