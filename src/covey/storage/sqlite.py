"""Storage in SQLite and a directory of blobs: the embedded default, safe under kill -9 at any instant."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from covey.storage.blobs import BlobDir
from covey.storage.interface import Admit, PopulationRecord, PrivacyCharge, TaskRecord, Version
from covey.storage.schema import SCHEMA_VERSION, STEPS
from covey.storage.sqlite_releases import SqliteReleases
from covey.types.errors import StorageError, StorageFullError, StorageLockedError
from covey.wire.messages import RoundSummary

__all__ = ["SqliteStorage"]

_LOCK_PATIENCE_S = 1.0
"""How long a call waits for another program that writes into the database: the server's loop waits with it."""

_TASK = "population, name, kind, plan, signature, settings, state, rounds, version, checkpoint"


class SqliteStorage:
    """See :class:`covey.storage.interface.Storage`."""

    def __init__(self, directory: Path, *, keep_checkpoints: int = 10, is_own: bool = True) -> None:
        """Open ``directory``, or make it. ``is_own`` False: to look at what a server may be using meanwhile.

        Raises:
            StorageError: it cannot be used, or was written by a newer Covey.
        """
        self._blobs = BlobDir(directory / "blobs", is_own=is_own)
        self._keep = max(1, keep_checkpoints)
        self._held: dict[str, set[str]] = {}
        with _errors():
            self._db = sqlite3.connect(
                directory / "server.db", timeout=_LOCK_PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        self.release_store = SqliteReleases(self._db, self._keep, _errors, self._transaction, self.forget)

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
                "SELECT name, round, checkpoint, extra FROM population WHERE name = ?", (population,)
            ).fetchone()
        return None if row is None else PopulationRecord(*row)

    def create(self, record: PopulationRecord) -> None:
        """See :class:`Storage`."""
        if self.load(record.population) is not None:
            raise StorageError("population", expected="a new name", got="one that exists")
        with self._transaction():
            self._db.execute(
                "INSERT INTO population (name, round, checkpoint, extra) VALUES (?, ?, ?, ?)",
                (record.population, record.round, record.checkpoint, record.extra),
            )

    def populations(self) -> tuple[str, ...]:
        """See :class:`Storage`."""
        with _errors():
            return tuple(name for (name,) in self._db.execute("SELECT name FROM population ORDER BY rowid"))

    def add_task(self, record: TaskRecord) -> None:
        """See :class:`Storage`."""
        if record.name in {t.name for t in self.tasks(record.population)}:
            raise StorageError("task", expected="a new name", got="one that exists")
        values = (*(getattr(record, f) for f in _TASK.split(", ")),)
        with self._transaction():
            self._db.execute(f"INSERT INTO task ({_TASK}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def tasks(self, population: str) -> tuple[TaskRecord, ...]:
        """See :class:`Storage`."""
        with _errors():
            rows = self._db.execute(f"SELECT {_TASK} FROM task WHERE population = ? ORDER BY sequence", (population,))
            return tuple(TaskRecord(*row) for row in rows)

    def change_task(self, population: str, name: str, state: str, settings: bytes) -> None:
        """See :class:`Storage`."""
        with self._transaction():
            changed = self._db.execute(
                "UPDATE task SET state = ?, settings = ? WHERE population = ? AND name = ?",
                (state, settings, population, name),
            )
            if not changed.rowcount:
                raise StorageError("task", expected="one that was created", got="an unknown name")

    def commit_round(self, population: str, summary: RoundSummary, checkpoint: bytes, extra: bytes) -> None:
        """See :class:`Storage`."""
        name = self._blobs.put(checkpoint)
        extra_name = self._blobs.put(extra) if extra else ""
        with self._transaction():
            self._db.execute(
                "UPDATE population SET round = round + 1, checkpoint = ?, extra = ? WHERE name = ?",
                (name, extra_name, population),
            )
            self._count(population, summary)
            self._insert(population, summary, name, extra_name)
        # The round is safe: a file that cannot be deleted must not make it look as if it had failed.
        with contextlib.suppress(StorageError):
            self._forget_old(population)

    def commit_evaluation(self, population: str, summary: RoundSummary) -> None:
        """See :class:`Storage`."""
        with self._transaction():
            self._count(population, summary)
            self._insert(population, summary, "", "")

    def roll_back(self, population: str, summary: RoundSummary, version: Version) -> None:
        """See :class:`Storage`."""
        if version not in self.versions(population):
            raise StorageError("version", expected="one that is kept", got="another")
        with self._transaction():
            self._db.execute(
                "UPDATE population SET round = round + 1, checkpoint = ?, extra = ? WHERE name = ?",
                (version.checkpoint, version.extra, population),
            )
            self._insert(population, summary, version.checkpoint, version.extra)
        with contextlib.suppress(StorageError):
            self._forget_old(population)

    def versions(self, population: str) -> tuple[Version, ...]:
        """See :class:`Storage`."""
        with _errors():
            rows = self._db.execute(f"SELECT number, checkpoint, extra {_KEPT} LIMIT ?", (population, self._keep))
            return tuple(Version(*row) for row in rows.fetchall()[::-1])

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

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            steps = "".join(STEPS[version:])
            self._db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise StorageError(
                "server.db", expected=f"schema {SCHEMA_VERSION}", got=f"schema {version}", hint="upgrade Covey"
            )

    def _count(self, population: str, summary: RoundSummary) -> None:
        """Note one more committed round of a task, after the population was moved."""
        changed = self._db.execute(
            "UPDATE task SET rounds = rounds + 1, version = (SELECT round FROM population WHERE name = population) "
            "WHERE population = ? AND name = ?",
            (population, summary.task),
        )
        if not changed.rowcount:
            raise StorageError("task", expected="one that was created", got="an unknown name")

    def _insert(self, population: str, summary: RoundSummary, checkpoint: str, extra: str) -> None:
        self._db.execute(
            "INSERT INTO round (population, number, status, summary, checkpoint, extra) VALUES (?, ?, ?, ?, ?, ?)",
            (population, summary.round, summary.status, msgspec.json.encode(summary), checkpoint, extra),
        )

    def _forget_old(self, population: str) -> None:
        """Delete checkpoints that nothing needs any more."""
        with _errors():
            rows = self._db.execute(f"SELECT checkpoint, extra {_KEPT} LIMIT 2 OFFSET ?", (population, self._keep))
            names = {name for row in rows for name in row}
        self.forget(names)

    def forget(self, names: set[str]) -> None:
        """See :class:`Storage`."""
        with _errors():
            states = self._db.execute("SELECT name, checkpoint, extra FROM population").fetchall()
            kept = [row[1:] for row in states]
            kept += self._db.execute("SELECT plan, checkpoint FROM task").fetchall()
            for name, *_ in states:
                kept += self._db.execute(f"SELECT checkpoint, extra {_KEPT} LIMIT ?", (name, self._keep)).fetchall()
        held = {name for held in self._held.values() for name in held}
        needed = {"", *self.release_store.needed()} | {name for row in kept for name in row} | held
        for name in names - needed:
            self._blobs.delete(name)

    def hold(self, population: str, names: set[str]) -> None:
        """See :class:`Storage`."""
        before = self._held.pop(population, set())
        self._held[population] = set(names)
        if gone := before - names:
            self.forget(gone)

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


_KEPT = "FROM round WHERE population = ? AND checkpoint != '' ORDER BY sequence DESC"


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as e:
        if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFullError("server.db", expected="room on the disk", got=str(e), hint="free some space") from e
        if (getattr(e, "sqlite_errorcode", 0) or 0) & 0xFF == sqlite3.SQLITE_BUSY:
            locked = StorageLockedError(
                "server.db", expected="no other program that writes into it", got=str(e), hint="end the other program"
            )
            locked.retry_after_s = _LOCK_PATIENCE_S
            raise locked from e
        raise StorageError("server.db", expected="a database that can be read and written", got=str(e)) from e
