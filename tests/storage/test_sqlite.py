"""SQLite and blobs on a real disk: changed bytes, a full disk, a broken database, and what each of them leaves."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from covey.storage.blobs import BlobDir
from covey.storage.interface import decode_named, encode_named
from covey.storage.schema import SCHEMA_VERSION
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import begin, summary_of
from covey.types.errors import BlobHashError, NotFoundError, StorageError, StorageFullError
from covey.types.tensors import sha256_hex


@pytest.fixture
def storage(tmp_path):
    storage = SqliteStorage(tmp_path, keep_checkpoints=2)
    begin(storage)
    storage.commit_round("p", summary_of(1), b"checkpoint 1", b"extra 1")
    yield storage
    storage.close()


def assert_first_round_stands(path):
    """Open ``path`` anew and check that exactly round 1 is committed, and that round 2 still can be."""
    storage = SqliteStorage(path, keep_checkpoints=2)
    record = storage.load("p")
    assert (record.round, len(storage.rounds("p"))) == (1, 1)
    assert storage.blob(record.checkpoint) == b"checkpoint 1" and storage.blob(record.extra) == b"extra 1"
    storage.commit_round("p", summary_of(2), b"checkpoint 2", b"")
    assert storage.load("p").round == 2 and storage.blob(storage.load("p").checkpoint) == b"checkpoint 2"
    assert storage.rounds("p") == (summary_of(1), summary_of(2))
    assert not list((path / "blobs").glob(".partial-*"))
    storage.close()


@pytest.mark.parametrize("damage", [b"checkpoint X", b"", b"checkpoint 1 and more", b"checkpoint"])
def test_changed_bytes_are_noticed(storage, tmp_path, damage):
    name = storage.load("p").checkpoint
    (tmp_path / "blobs" / name).write_bytes(damage)
    with pytest.raises(BlobHashError, match="expected the bytes of that name, got others"):
        storage.blob(name)


def test_a_blob_that_was_deleted_by_hand_is_not_found(storage, tmp_path):
    name = storage.load("p").checkpoint
    (tmp_path / "blobs" / name).unlink()
    with pytest.raises(NotFoundError):
        storage.blob(name)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    blobs = BlobDir(tmp_path)
    name = blobs.put(b"whole")
    (tmp_path / ".partial-abc").write_bytes(b"hal")
    assert BlobDir(tmp_path).get(name) == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_whoever_only_looks_leaves_alone_what_the_server_is_writing(tmp_path):
    BlobDir(tmp_path)
    (tmp_path / ".partial-abc").write_bytes(b"hal")
    BlobDir(tmp_path, is_own=False)
    assert (tmp_path / ".partial-abc").exists()


def test_deleting_twice_is_fine(tmp_path):
    blobs = BlobDir(tmp_path)
    name = blobs.put(b"x")
    blobs.delete(name)
    blobs.delete(name)
    with pytest.raises(NotFoundError):
        blobs.get(name)


def test_a_blob_is_synced_before_it_has_its_name_and_its_directory_after(tmp_path, monkeypatch):
    blobs, order = BlobDir(tmp_path), []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(handle):
        order.append("directory" if Path(f"/proc/self/fd/{handle}").is_dir() else "file")
        fsync(handle)

    def spy_replace(self, target):
        order.append("name")
        return replace(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell a directory's handle from a file's")
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    blobs.put(b"data")
    assert order == ["file", "name", "directory"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "fdopen", "replace", "mkstemp"])
def test_a_disk_that_fails_while_a_checkpoint_is_written(storage, tmp_path, monkeypatch, code, call):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    kind = StorageError if code == errno.EIO else StorageFullError
    with monkeypatch.context() as patch:
        owner = {"replace": Path, "mkstemp": sys.modules["covey.storage.blobs"].tempfile}.get(call, os)
        patch.setattr(owner, call, fail)
        with pytest.raises(StorageError) as caught:
            storage.commit_round("p", summary_of(2), b"checkpoint 2", b"extra 2")
    assert type(caught.value) is kind
    assert storage.load("p").round == 1 and len(storage.rounds("p")) == 1
    assert not list((tmp_path / "blobs").glob(".partial-*"))
    storage.close()
    assert_first_round_stands(tmp_path)


def test_a_disk_that_is_full_for_the_extra_only(storage, tmp_path, monkeypatch):
    put = BlobDir.put

    def second_fails(self, data):
        if data == b"extra 2":
            raise StorageFullError("blob directory", expected="room", got="none")
        return put(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(BlobDir, "put", second_fails)
        with pytest.raises(StorageFullError):
            storage.commit_round("p", summary_of(2), b"checkpoint 2", b"extra 2")
    storage.close()
    assert_first_round_stands(tmp_path)


def test_a_database_that_cannot_grow(storage, tmp_path):
    (pages,) = storage._db.execute("PRAGMA page_count").fetchone()
    storage._db.execute(f"PRAGMA max_page_count = {pages}")
    row = summary_of(2)
    big = type(row)(
        **{f: getattr(row, f) for f in row.__struct_fields__ if f != "metrics"},
        metrics={f"metric {i}": 1.0 for i in range(2000)},  # more than a page of 4 kB
    )
    for call in (
        lambda: storage.commit_round("p", big, b"checkpoint 2", b""),
        lambda: storage.add_summary("p", big),
    ):
        with pytest.raises(StorageFullError, match=r"server\.db"):
            call()
        assert not storage._db.in_transaction
        assert storage.load("p").round == 1 and storage.rounds("p") == (summary_of(1),)
    storage.close()
    assert_first_round_stands(tmp_path)


def test_a_transaction_that_fails_half_way_is_undone(storage, tmp_path, monkeypatch):
    def fail(*args):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStorage, "_insert", fail)  # the state is updated by then, the row is not yet there
        with pytest.raises(StorageError, match="disk I/O error"):
            storage.commit_round("p", summary_of(2), b"checkpoint 2", b"")
    assert storage.load("p").round == 1
    storage.close()
    assert_first_round_stands(tmp_path)


def test_a_file_that_cannot_be_deleted_does_not_undo_a_committed_round(storage, monkeypatch):
    def fail(*args):
        raise StorageError("blob directory", expected="a file that can be written", got="Permission denied")

    monkeypatch.setattr(BlobDir, "delete", fail)
    for number in (2, 3, 4):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"")
        assert storage.load("p").round == number == len(storage.rounds("p"))


LIMITED = """
import resource, sys
from pathlib import Path
from covey.storage.schema import SCHEMA_VERSION
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import summary_of
from covey.types.errors import StorageFullError
storage = SqliteStorage(Path(sys.argv[1]), keep_checkpoints=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    storage.commit_round("p", summary_of(2), bytes(2 << 20), b"")
except StorageFullError as e:
    print(e.code)
storage.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_real_limit_of_the_operating_system(storage, tmp_path):
    storage.close()
    got = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, timeout=60)
    assert (got.returncode, got.stdout, got.stderr) == (0, "storage_full\n", "")
    assert_first_round_stands(tmp_path)


def test_a_database_of_a_newer_covey_is_refused_and_left_alone(storage, tmp_path):
    storage._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    storage.close()
    for _ in range(2):
        with pytest.raises(StorageError, match=f"expected schema {SCHEMA_VERSION}, got schema {SCHEMA_VERSION + 1}"):
            SqliteStorage(tmp_path)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "server.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StorageError, match=r"server\.db"):
        SqliteStorage(tmp_path)


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(StorageError, match="blob directory"):
        SqliteStorage(tmp_path / "data")


def test_blobs_that_cannot_be_read(tmp_path):
    blobs = BlobDir(tmp_path)
    (tmp_path / sha256_hex(b"x")).mkdir()
    with pytest.raises(StorageError) as caught:
        blobs.get(sha256_hex(b"x"))
    assert not isinstance(caught.value, NotFoundError)


def test_named_tensors_come_back():
    tensors = {"b/m": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([7], np.int32)}
    back = decode_named(encode_named(tensors))
    assert list(back) == ["a", "b/m"]
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and np.array_equal(back[name], value)
    newline = {"x": np.frombuffer(b"\n\n\n\n", np.float32)}  # the head ends at the first newline only
    assert decode_named(encode_named(newline))["x"].tobytes() == b"\n\n\n\n"
    assert encode_named({}) == b"" and decode_named(b"") == {}
