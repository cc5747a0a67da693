"""Storage in SQLite and a directory of blobs: the embedded default, safe under kill -9 at any instant."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from covey.storage.blobs import BlobDir
from covey.storage.interface import PopulationRecord
from covey.types.errors import StorageError, StorageFullError
from covey.wire.messages import RoundSummary

__all__ = ["SqliteStorage"]

_SCHEMA_VERSION = 1
_SCHEMA = """
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
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
            elif version != _SCHEMA_VERSION:
                raise StorageError(
                    "server.db", expected=f"schema {_SCHEMA_VERSION}", got=f"schema {version}", hint="upgrade Covey"
                )

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

    def close(self) -> None:
        """See :class:`Storage`."""
        self._db.close()

    def _insert(self, population: str, summary: RoundSummary, checkpoint: str, extra: str) -> None:
        self._db.execute(
            "INSERT INTO round (population, number, status, summary, checkpoint, extra) VALUES (?, ?, ?, ?, ?, ?)",
            (population, summary.round, summary.status, msgspec.json.encode(summary), checkpoint, extra),
        )

    def _forget_old(self, population: str) -> None:
        """Delete checkpoints that nothing needs any more."""
        query = "SELECT checkpoint, extra FROM round WHERE population = ? AND checkpoint != '' ORDER BY sequence DESC"
        with _errors():
            rows = self._db.execute(f"{query} LIMIT 2 OFFSET ?", (population, self._keep)).fetchall()
            kept = self._db.execute(f"{query} LIMIT ?", (population, self._keep)).fetchall()
            plans = self._db.execute("SELECT plan, checkpoint, extra FROM population").fetchall()
        needed = {name for row in (*kept, *plans) for name in row}
        for name in {name for row in rows for name in row if name} - needed:
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
