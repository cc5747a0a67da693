"""The SQLite file of the example store: its schema, its transactions, what happens when it is full or damaged."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from covey.device.files import file_lock, set_aside
from covey.types.errors import StorageError, StorageFullError, StoreCorruptError

__all__ = ["SCHEMA_VERSION", "StoreFile"]

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE layouts (
    id INTEGER PRIMARY KEY,
    fields TEXT NOT NULL UNIQUE          -- JSON: [[name, dtype, shape], ...], sorted by name
);
CREATE TABLE examples (
    id INTEGER PRIMARY KEY,              -- grows: the order of arrival
    collection TEXT NOT NULL,
    split TEXT NOT NULL,
    layout INTEGER NOT NULL REFERENCES layouts (id),
    scalars TEXT NOT NULL,               -- JSON: the fields of shape [], which queries filter on; empty where sealed
    record BLOB NOT NULL                 -- sealed where the store is encrypted
);
CREATE INDEX examples_in_order ON examples (collection, split, id);
"""

_SCHEMA_2 = """
ALTER TABLE examples ADD COLUMN at_s REAL NOT NULL DEFAULT 0;
CREATE INDEX examples_by_age ON examples (at_s);
CREATE TABLE declared (
    collection TEXT PRIMARY KEY,
    schema TEXT NOT NULL                 -- JSON: the example schema that an application declared
);
CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value NOT NULL
)
"""

_BUSY_S = 10.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreFile:
    """An open file. Safe to share between threads: one transaction at a time."""

    def __init__(self, path: Path, *, quarantine: bool, now_s: float) -> None:
        """Open the file, or make it.

        Args:
            path: the file; its directory must exist.
            quarantine: move a damaged file aside and begin anew, now and whenever the damage shows.
            now_s: the age that examples of an older version begin with.

        Raises:
            StorageError: the file cannot be opened, or was written by a newer Covey.
            StoreCorruptError: it is damaged, or no example store, and is not to be moved aside.
        """
        self.path = path
        self.quarantined: Path | None = None
        self._where = f"example store {path.name}"
        self._quarantine, self._now_s = quarantine, now_s
        self._lock = threading.RLock()
        self._max_bytes: int | None = None
        try:
            self._open()
        except StoreCorruptError:
            if not quarantine:
                raise
            self._begin_anew()

    @contextlib.contextmanager
    def transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction: all of it is stored, or nothing.

        Raises:
            StorageFullError: no room.
            StoreCorruptError: the file is damaged; if it is to be, it was moved aside and the store is empty now.
            StorageError: anything else that SQLite reports.
        """
        with self._lock:
            try:
                with self._errors(), self._begun(kind):
                    yield self._db
            except StoreCorruptError as error:
                if not self._quarantine:
                    raise
                self._begin_anew()
                kept = self.quarantined.name if self.quarantined else "another process's copy"
                raise StoreCorruptError(
                    error.where,
                    expected=error.expected,
                    got=error.got,
                    hint=f"the file was kept as {kept}; the store began anew, and nothing else is lost",
                ) from error

    def limit(self, max_bytes: int | None) -> None:
        """Let the file grow to ``max_bytes`` at most; one that is larger already does not grow."""
        self._max_bytes = max_bytes
        if max_bytes is not None:
            with self._lock, self._errors():
                (page_bytes,) = self._db.execute("PRAGMA page_size").fetchone()
                self._db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")

    def scrub(self, *, patiently: bool) -> None:
        """Let nothing of what was deleted remain in the files of this store.

        Deleted content was overwritten with zeros in the transaction that deleted it (``secure_delete``). Here the
        zeros go from the log into the file, and the log is emptied.

        Args:
            patiently: wait for other processes that are reading, and cut off the file's free end. If not, the log may
                be emptied another time.

        Raises:
            StorageError: patient, and another process still read after some seconds.
        """
        with self._lock, self._errors():
            self._db.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_S) if patiently else 0}")
            busy = self._checkpoint()
            if patiently and not busy:
                self._db.executescript("PRAGMA incremental_vacuum")  # a script: execute() would free one page only
                busy = self._checkpoint()
            self._db.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_S)}")
        if busy and patiently:
            raise StorageError(
                self._where,
                expected="no other process that reads it",
                got="one that goes on reading",
                hint="the examples are deleted, but their bytes stay in the log until it ends: try again then",
            )

    def num_bytes(self) -> int:
        """Return the size of the file in use, without free pages."""
        with self.transaction("DEFERRED") as db:
            page_bytes, pages, free = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
            )
        return int(page_bytes * (pages - free))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _open(self) -> None:
        with self._errors():
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._db.close()
            raise
        self.limit(self._max_bytes)

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only a new file takes it; an older one keeps its free pages
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # what is committed survives a power cut, too
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA temp_store = MEMORY")  # no example in a temporary file
        db.execute("PRAGMA cache_size = -512")  # 512 KiB: the device's memory belongs to training
        with self._begun("IMMEDIATE"):
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StorageError(
                    self._where, expected=f"schema {SCHEMA_VERSION}", got=str(version), hint="upgrade this device"
                )
            steps = [_SCHEMA, _SCHEMA_2][version:]
            for statement in (s for step in steps for s in step.split(";\n")):
                db.execute(statement)
            if version == 1:
                db.execute("UPDATE examples SET at_s = ?", (self._now_s,))
            if steps:
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _begin_anew(self) -> None:
        """Move the damaged file aside, unless another process has just done it, and open a new one."""
        with contextlib.suppress(AttributeError):
            self._db.close()
        with file_lock(self.path.with_name(f"{self.path.name}.lock")):
            with contextlib.suppress(StoreCorruptError):
                self._open()
                if not self._is_damaged():
                    return
                self._db.close()
            self.quarantined = set_aside(self.path)
            for end in ("-wal", "-shm"):  # they belong to that file: a new one must not read them
                log = self.path.with_name(self.path.name + end)
                if log.exists():
                    log.rename(self.quarantined.with_name(self.quarantined.name + end))
            self._open()

    def _is_damaged(self) -> bool:
        try:
            found: tuple[str] = self._db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError:
            return True
        return found != ("ok",)

    def _checkpoint(self) -> bool:
        """Write the log into the file and empty it; return whether another process was in the way."""
        busy: int = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return bool(busy)

    @contextlib.contextmanager
    def _begun(self, kind: str) -> Iterator[None]:
        self._db.execute(f"BEGIN {kind}")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already; rolling back twice would hide the first error.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            code = getattr(e, "sqlite_errorcode", 0) & 0xFF  # the extended codes refine the primary one
            if code == sqlite3.SQLITE_FULL:
                raise StorageFullError(
                    self._where,
                    expected="room for more examples",
                    got="a full disk or store",
                    hint="nothing that was stored is lost; delete old examples or free some space",
                ) from e
            kind = StoreCorruptError if code in _DAMAGED else StorageError
            raise kind(self._where, expected="a working SQLite file", got=str(e)) from e
