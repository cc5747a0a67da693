"""Releases in SQLite: a verdict and its release appear together or not at all, and are never changed."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from covey.storage.sqlite import SqliteStorage
from covey.testing.releases import candidate_of, release_of
from covey.testing.storage import begin, summary_of
from covey.types.errors import StorageError
from covey.types.tensors import sha256_hex

KILLED_AT_EVERY_LINE = """
import os, shutil, signal, sys
from pathlib import Path
from covey.storage.sqlite import SqliteStorage
from covey.testing.releases import candidate_of, release_of
from covey.testing.storage import begin, summary_of

base, source = Path(sys.argv[1]), sys.argv[2]

def attempt(path, line):
    "Promote round 3 and die before the given line of the storage's code; exit with 0 when there are fewer lines."
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
    storage = SqliteStorage(path, keep_checkpoints=1)
    sys.settrace(trace)
    storage.release_store.settle("p", candidate_of(3, "promoted", version=2), release_of(2, 3))
    os._exit(0)

begun = base / "0"
storage = SqliteStorage(begun, keep_checkpoints=1)
begin(storage)
for number in (1, 2, 3):
    storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"")
    if number != 2:
        storage.release_store.propose("p", candidate_of(number))
    if number == 1:
        storage.release_store.settle("p", candidate_of(1, "promoted", version=1), release_of(1))
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


def check(path) -> int:
    """Open what a killed process left, check every law, and return the newest version."""
    storage = SqliteStorage(path, keep_checkpoints=1)
    releases, (first, second) = storage.release_store.releases("p"), storage.release_store.candidates("p")
    assert first == candidate_of(1, "promoted", version=1) and releases[0] == release_of(1)
    if len(releases) == 1:
        assert second == candidate_of(3)
    else:
        assert (second, releases[1:]) == (candidate_of(3, "promoted", version=2), (release_of(2, 3),))
    assert storage.blob(releases[-1].checkpoint) and storage.blob(second.checkpoint)  # what is served, and what may be
    storage.close()
    return len(releases)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_before_every_line_of_a_verdict(tmp_path):
    source = os.path.dirname(sys.modules["covey.storage.sqlite"].__file__)  # noqa: PTH120
    got = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_LINE, tmp_path, source], capture_output=True, text=True, timeout=120
    )
    assert (got.returncode, got.stderr) == (0, "")
    versions = [check(p) for p in sorted(tmp_path.iterdir(), key=lambda p: int(p.name))]
    assert len(versions) > 10
    assert versions == sorted(versions) and set(versions) == {1, 2}  # one instant, the commit's, divides them


@pytest.fixture
def storage(tmp_path):
    storage = SqliteStorage(tmp_path, keep_checkpoints=2)
    begin(storage)
    storage.commit_round("p", summary_of(1), b"checkpoint 1", b"")
    storage.release_store.propose("p", candidate_of(1))
    yield storage
    storage.close()


def test_a_release_is_never_changed_or_taken_back(storage):
    storage.release_store.settle("p", candidate_of(1, "promoted", version=1), release_of(1))
    for statement, what in (("UPDATE release SET version = 7", "changed"), ("DELETE FROM release", "taken back")):
        with pytest.raises(sqlite3.IntegrityError, match=f"never {what}"):
            storage._db.execute(statement)
    assert storage.release_store.releases("p") == (release_of(1),)


def test_a_verdict_that_fails_half_way_is_undone(storage, monkeypatch):
    def fail(*args):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(type(storage.release_store), "_insert", fail)  # the candidate is updated by then
        with pytest.raises(StorageError, match="disk I/O error"):
            storage.release_store.settle("p", candidate_of(1, "promoted", version=1), release_of(1))
    assert storage.release_store.candidates("p") == (candidate_of(1),)
    assert storage.release_store.releases("p") == ()
    storage.release_store.settle("p", candidate_of(1, "promoted", version=1), release_of(1))
    assert storage.blob(sha256_hex(b"checkpoint 1")) == b"checkpoint 1"


def test_a_file_that_cannot_be_deleted_undoes_no_verdict(storage, monkeypatch):
    def fail(*args):
        raise StorageError("blob directory", expected="a file that can be written", got="Permission denied")

    for number in (2, 3, 4):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"")
    monkeypatch.setattr(type(storage._blobs), "delete", fail)
    storage.release_store.settle("p", candidate_of(1, "refused", reason="not_finite"), None)
    assert storage.release_store.candidates("p")[0].status == "refused"
