"""Storage in SQLite and a directory of blobs: the embedded default, safe under kill -9 at any instant."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from covey.storage.blobs import BlobDir
from covey.storage.interface import Admit, PopulationRecord, PrivacyCharge
from covey.storage.sqlite_releases import RELEASES, SqliteReleases
from covey.types.errors import StorageError, StorageFullError
from covey.wire.messages import RoundSummary

__all__ = ["SqliteStorage"]

_SCHEMA_VERSION = 3
_ROUNDS = """
    CREATE TABLE population (
        name TEXT PRIMARY KEY, plan TEXT NOT NULL, signature TEXT NOT NULL,
        round INTEGER NOT NULL, checkpoint TEXT NOT NULL, extra TEXT NOT NULL
    ) STRICT;
    CREATE TABLE round (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, population TEXT NOT NULL REFERENCES population (name),
        number INTEGER NOT NULL, status TEXT NOT NULL, summary BLOB NOT NULL,
        checkpoint TEXT NOT NULL, extra TEXT NOT NULL
    ) STRICT;
    CREATE INDEX round_of ON round (population, sequence);
"""
_LEDGER = """
    CREATE TABLE privacy_loss (name TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT;
    CREATE TABLE privacy_charge (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT, population TEXT NOT NULL REFERENCES population (name),
        plan TEXT NOT NULL, round INTEGER NOT NULL, phase INTEGER NOT NULL, attempt TEXT NOT NULL,
        loss TEXT NOT NULL REFERENCES privacy_loss (name), times INTEGER NOT NULL CHECK (times > 0)
    ) STRICT;
    CREATE INDEX privacy_charge_of ON privacy_charge (population, loss);
    CREATE TRIGGER privacy_is_not_changed BEFORE UPDATE ON privacy_charge
        BEGIN SELECT RAISE (ABORT, 'a privacy charge is never changed'); END;
    CREATE TRIGGER privacy_is_not_refunded BEFORE DELETE ON privacy_charge
        BEGIN SELECT RAISE (ABORT, 'a privacy charge is never refunded'); END;
"""
_STEPS = (_ROUNDS, _LEDGER, RELEASES)
"""What leads from each version of the schema to the next: an older directory is brought up to date when opened."""

_NEWEST = "SELECT checkpoint, extra FROM round WHERE population = ? AND checkpoint != '' ORDER BY sequence DESC"


class SqliteStorage:
    """See :class:`covey.storage.interface.Storage`."""

    def __init__(self, directory: Path, *, keep_checkpoints: int = 10) -> None:
        """Open ``directory``, or make it.

        Raises:
            StorageError: it cannot be used, or was written by a newer Covey.
        """
        self._blobs = BlobDir(directory / "blobs")
        self._keep = max(1, keep_checkpoints)
        with _errors():
            self._db = sqlite3.connect(directory / "server.db", isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version < _SCHEMA_VERSION:
                steps = "".join(_STEPS[version:])
                self._db.executescript(f"BEGIN; {steps} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
            elif version != _SCHEMA_VERSION:
                raise StorageError(
                    "server.db", expected=f"schema {_SCHEMA_VERSION}", got=f"schema {version}", hint="upgrade Covey"
                )

        self.release_store = SqliteReleases(self._db, self._keep, _errors, self._transaction, self._forget)

    def put_blob(self, data: bytes) -> str:
        """See :class:`Storage`."""
        return self._blobs.put(data)

    def blob(self, sha256: str) -> bytes:
        """See :class:`Storage`."""
        return self._blobs.get(sha256)

    def load(self, population: str) -> PopulationRecord | None:
        """See :class:`Storage`."""
        with _errors():
            row = self._db.execute(
                "SELECT name, plan, signature, round, checkpoint, extra FROM population WHERE name = ?", (population,)
            ).fetchone()
        return None if row is None else PopulationRecord(*row)

    def create(self, record: PopulationRecord) -> None:
        """See :class:`Storage`."""
        if self.load(record.population) is not None:
            raise StorageError("population", expected="a new name", got="one that exists")
        with self._transaction():
            self._db.execute(
                "INSERT INTO population VALUES (?, ?, ?, ?, ?, ?)",
                (record.population, record.plan, record.signature, record.round, record.checkpoint, record.extra),
            )

    def commit_round(self, population: str, summary: RoundSummary, checkpoint: bytes, extra: bytes) -> None:
        """See :class:`Storage`."""
        name = self._blobs.put(checkpoint)
        extra_name = self._blobs.put(extra) if extra else ""
        with self._transaction():
            self._db.execute(
                "UPDATE population SET round = round + 1, checkpoint = ?, extra = ? WHERE name = ?",
                (name, extra_name, population),
            )
            self._insert(population, summary, name, extra_name)
        # The round is safe: a file that cannot be deleted must not make it look as if it had failed.
        with contextlib.suppress(StorageError):
            self._forget_old(population)

    def add_summary(self, population: str, summary: RoundSummary) -> None:
        """See :class:`Storage`."""
        with self._transaction():
            self._insert(population, summary, "", "")

    def rounds(self, population: str, after: int = 0) -> tuple[RoundSummary, ...]:
        """See :class:`Storage`."""
        with _errors():
            rows = self._db.execute(
                "SELECT summary FROM round WHERE population = ? ORDER BY sequence LIMIT -1 OFFSET ?",
                (population, after),
            ).fetchall()
        return tuple(msgspec.json.decode(data, type=RoundSummary) for (data,) in rows)

    def charge_privacy(self, population: str, charges: Sequence[PrivacyCharge], admit: Admit) -> None:
        """See :class:`Storage`."""
        with self._transaction():
            # The write lock is held: no other charge can come between the check and the rows.
            admit(self._spent(population))
            for c in charges:
                name = hashlib.sha256(c.loss).hexdigest()
                self._db.execute("INSERT OR IGNORE INTO privacy_loss VALUES (?, ?)", (name, c.loss))
                self._db.execute(
                    "INSERT INTO privacy_charge (population, plan, round, phase, attempt, loss, times) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (population, c.plan, c.round, c.phase, c.attempt, name, c.times),
                )

    def privacy_spent(self, population: str) -> Mapping[bytes, int]:
        """See :class:`Storage`."""
        with _errors():
            return self._spent(population)

    def privacy_charges(self, population: str) -> tuple[PrivacyCharge, ...]:
        """See :class:`Storage`."""
        with _errors():
            rows = self._db.execute(
                "SELECT plan, round, phase, attempt, data, times FROM privacy_charge JOIN privacy_loss ON name = loss "
                "WHERE population = ? ORDER BY sequence",
                (population,),
            ).fetchall()
        return tuple(PrivacyCharge(*row) for row in rows)

    def close(self) -> None:
        """See :class:`Storage`."""
        self._db.close()

    def _spent(self, population: str) -> dict[bytes, int]:
        rows = self._db.execute(
            "SELECT data, total FROM (SELECT loss, SUM(times) AS total FROM privacy_charge WHERE population = ? "
            "GROUP BY loss) JOIN privacy_loss ON name = loss",
            (population,),
        ).fetchall()
        return dict(rows)

    def _insert(self, population: str, summary: RoundSummary, checkpoint: str, extra: str) -> None:
        self._db.execute(
            "INSERT INTO round (population, number, status, summary, checkpoint, extra) VALUES (?, ?, ?, ?, ?, ?)",
            (population, summary.round, summary.status, msgspec.json.encode(summary), checkpoint, extra),
        )

    def _forget_old(self, population: str) -> None:
        """Delete checkpoints that nothing needs any more."""
        with _errors():
            rows = self._db.execute(f"{_NEWEST} LIMIT 2 OFFSET ?", (population, self._keep)).fetchall()
        self._forget({name for row in rows for name in row})

    def _forget(self, names: set[str]) -> None:
        """Delete blobs, but for those that anything still needs."""
        with _errors():
            plans = self._db.execute("SELECT plan, checkpoint, extra, name FROM population").fetchall()
            kept = [self._db.execute(f"{_NEWEST} LIMIT ?", (row[3], self._keep)).fetchall() for row in plans]
        needed = {"", *self.release_store.needed()} | {name for row in plans for name in row[:3]}
        needed |= {name for rows in kept for row in rows for name in row}
        for name in names - needed:
            self._blobs.delete(name)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as e:
        if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFullError("server.db", expected="room on the disk", got=str(e), hint="free some space") from e
        raise StorageError("server.db", expected="a database that can be read and written", got=str(e)) from e
