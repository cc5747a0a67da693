"""Directories of former versions are brought up to date when they are opened, and lose nothing."""

import sqlite3
from pathlib import Path

import pytest

from covey.storage.blobs import BlobDir
from covey.storage.interface import PopulationRecord, TaskRecord, Version
from covey.storage.schema import SCHEMA_VERSION, STEPS
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import charge_of, summary_of
from covey.types.errors import StorageError, StorageLockedError
from covey.types.tensors import sha256_hex

OLD = Path(__file__).with_name("schema_2.sql")
PLAN = sha256_hex(b"plan")


@pytest.fixture
def old(tmp_path):
    """Return a directory as schema 2 left it."""
    blobs = BlobDir(tmp_path / "blobs")
    for data in (b"plan", *(b"%s %d" % (kind, n) for kind in (b"checkpoint", b"extra") for n in (0, 1, 2))):
        blobs.put(data)
    db = sqlite3.connect(tmp_path / "server.db")
    db.executescript(OLD.read_text())
    db.close()
    return tmp_path


def test_what_a_population_executed_becomes_its_task(old):
    for _ in range(2):  # the second time there is nothing left to do
        storage = SqliteStorage(old)
        names = sha256_hex(b"checkpoint 2"), sha256_hex(b"extra 2")
        assert storage.populations() == ("p", "q")
        assert storage.load("p") == PopulationRecord("p", 2, *names)
        assert storage.tasks("p") == (TaskRecord("p", "train", "train", PLAN, "5160", b"", "running", 2, 2),)
        assert storage.tasks("q") == (TaskRecord("q", "train", "train", PLAN, "5161", b"", "running", 0, 0),)
        assert [(r.round, r.status) for r in storage.rounds("p")] == [
            (1, "committed"),
            (2, "committed"),
            (3, "abandoned"),
        ]
        assert storage.versions("p")[-1] == Version(2, *names)
        storage.close()


def test_the_privacy_ledger_is_as_it_was_and_still_cannot_be_changed(old):
    storage = SqliteStorage(old)
    assert [(c.plan, c.round, c.attempt, c.loss, c.times) for c in storage.privacy_charges("p")] == [
        (PLAN, 1, "a1", b"loss", 1),
        (PLAN, 2, "a2", b"loss", 2),
    ]
    with pytest.raises(sqlite3.IntegrityError, match="never refunded"):
        storage._db.execute("DELETE FROM privacy_charge")
    seen = []
    storage.charge_privacy("p", [charge_of(3)], lambda spent: seen.append(dict(spent)))
    assert seen == [{b"loss": 3}]
    storage.close()


def test_rounds_go_on_after_the_migration(old):
    storage = SqliteStorage(old, keep_checkpoints=2)
    storage.commit_round("p", summary_of(3), b"checkpoint 3", b"")
    assert (storage.load("p").round, storage.tasks("p")[0].rounds) == (3, 3)
    storage.roll_back("p", summary_of(4, "rolled_back"), storage.versions("p")[0])
    assert storage.blob(storage.load("p").checkpoint) == b"checkpoint 2"
    storage.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_every_former_schema_is_brought_up_to_date(tmp_path, version):
    db = sqlite3.connect(tmp_path / "server.db")
    db.executescript(STEPS[0])
    db.execute("INSERT INTO population VALUES ('p', 'plan', '51', 0, 'c', '')")
    db.commit()
    db.executescript("".join(STEPS[1:version]))
    db.execute(f"PRAGMA user_version = {version}")
    db.commit()
    db.close()
    storage = SqliteStorage(tmp_path)
    assert storage.load("p").checkpoint == "c" and storage.tasks("p")[0].plan == "plan"
    storage.close()


def test_a_migration_that_fails_leaves_the_old_directory(old):
    db = sqlite3.connect(old / "server.db")
    db.execute("CREATE TABLE task (in_the TEXT, way TEXT)")
    db.commit()
    with pytest.raises(StorageError, match="already exists"):
        SqliteStorage(old)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert db.execute("SELECT plan FROM population").fetchall() == [(PLAN,), (PLAN,)]
    db.close()


def test_another_program_that_writes_is_named_and_nothing_is_lost(old):
    storage = SqliteStorage(old)
    other = sqlite3.connect(old / "server.db", isolation_level=None)
    storage._db.execute("PRAGMA busy_timeout = 10")
    other.execute("BEGIN IMMEDIATE")
    for call in (
        lambda: storage.commit_round("p", summary_of(3), b"checkpoint 3", b""),
        lambda: storage.add_summary("p", summary_of(3, "abandoned")),
        lambda: storage.charge_privacy("p", [charge_of(3)], lambda spent: None),
        lambda: storage.change_task("p", "train", "paused", b""),
    ):
        with pytest.raises(StorageLockedError, match="no other program that writes") as caught:
            call()
        assert caught.value.retry_after_s > 0
    assert (storage.load("p").round, len(storage.rounds("p"))) == (2, 3)  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    storage.commit_round("p", summary_of(3), b"checkpoint 3", b"")
    assert storage.load("p").round == 3
    storage.close()
