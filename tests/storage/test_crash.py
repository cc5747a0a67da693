"""``kill -9``: after it, at any instant, the storage holds the last committed round and nothing half done."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import summary_of
from covey.types.tensors import sha256_hex

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

COMMITTING = """
import sys
from pathlib import Path
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin, summary_of
storage = SqliteStorage(Path(sys.argv[1]), keep_checkpoints=2)
record = storage.load("p") or begin(storage)
number = record.round
print(number, flush=True)
while True:
    number += 1
    storage.commit_round("p", summary_of(number), b"checkpoint %d" % number * 5000, b"extra %d" % number)
    print(number, flush=True)
"""


def check(path: Path) -> int:
    """Open what a killed process left, check every law, and return the number of committed rounds."""
    storage = SqliteStorage(path, keep_checkpoints=2)
    record = storage.load("p")
    n = record.round
    assert storage.rounds("p") == tuple(summary_of(i) for i in range(1, n + 1))
    if n:
        assert storage.blob(record.checkpoint) == b"checkpoint %d" % n * 5000
        assert storage.blob(record.extra) == b"extra %d" % n
    else:
        assert storage.blob(record.checkpoint) == b"checkpoint 0"
    (task,) = storage.tasks("p")
    assert (task.rounds, task.version) == ((n, n) if n else (0, -1)) and storage.blob(task.plan) == b"plan"
    assert not list((path / "blobs").glob(".partial-*"))
    storage.close()
    return n


def test_killed_at_random_instants(tmp_path):
    chance = random.Random()  # not seeded: every run tries other instants
    committed = 0
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", COMMITTING, tmp_path], stdout=subprocess.PIPE, text=True) as child:
            assert int(child.stdout.readline()) == committed
            time.sleep(chance.uniform(0.0, 0.1))
            child.send_signal(signal.SIGKILL)
            told = [committed, *map(int, child.stdout.read().split("\n")[:-1])]
        now = check(tmp_path)
        # What commit_round said is committed is; one more may be, whose answer the kill cut off.
        assert told == list(range(committed, told[-1] + 1)) and now in (told[-1], told[-1] + 1)
        committed = now
    assert committed > 0


KILLED_AT_EVERY_LINE = """
import os, shutil, signal, sys
from pathlib import Path
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin, summary_of

base, source = Path(sys.argv[1]), sys.argv[2]

def attempt(path, line):
    "Commit round 4 and die before the given line of the storage's code; exit with 0 when there are fewer lines."
    left = line
    def trace(frame, event, arg):
        nonlocal left
        if not frame.f_code.co_filename.startswith(source):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    storage = SqliteStorage(path, keep_checkpoints=2)
    sys.settrace(trace)
    storage.commit_round("p", summary_of(4), b"checkpoint 4" * 5000, b"extra 4")
    os._exit(0)

begun = base / "0"
storage = SqliteStorage(begun, keep_checkpoints=2)
begin(storage)
for number in (1, 2, 3):
    storage.commit_round("p", summary_of(number), b"checkpoint %d" % number * 5000, b"extra %d" % number)
storage.close()

for line in range(1, 1000):
    path = base / str(line)
    shutil.copytree(begun, path)
    child = os.fork()
    if child == 0:
        attempt(path, line)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


def test_killed_before_every_line_of_a_commit(tmp_path):
    source = os.path.dirname(sys.modules["covey.storage.sqlite"].__file__)  # noqa: PTH120
    got = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, tmp_path, source], capture_output=True, text=True, timeout=120
    )
    assert (got.returncode, got.stderr) == (0, "")
    paths = sorted(tmp_path.iterdir(), key=lambda p: int(p.name))
    rounds = [check(p) for p in paths]
    assert len(rounds) > 20
    assert rounds == sorted(rounds) and set(rounds) == {3, 4}  # one instant, the commit's, divides before from after
    for path in paths[::5]:  # they go on as if nothing had been
        storage = SqliteStorage(path, keep_checkpoints=2)
        number = storage.load("p").round + 1
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number * 5000, b"extra %d" % number)
        kept = {p.name for p in (path / "blobs").iterdir()}
        for i in (number - 1, number):
            assert {sha256_hex(b"checkpoint %d" % i * 5000), sha256_hex(b"extra %d" % i)} <= kept
        storage.close()
