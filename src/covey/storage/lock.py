"""A lock on a directory: one process at a time. The operating system frees it, also after a kill -9."""

import sqlite3
from pathlib import Path

from covey.storage.blobs import storage_errors
from covey.types.errors import StorageError, StorageFullError, StorageLockedError

__all__ = ["DirectoryLock"]


class DirectoryLock:
    """Held from its making to :meth:`close`."""

    def __init__(self, path: Path, holder: str = "server") -> None:
        """Take the lock in the file ``path``, which is made; ``holder`` says in errors what takes it.

        Raises:
            StorageLockedError: another process holds it.
            StorageError: the file cannot be made.
        """
        where = f"directory {path.parent}"
        # SQLite's file lock is the portable one of the standard library.
        with storage_errors(where):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as e:
            raise StorageError(where, expected="a lock file", got=str(e)) from e
        try:
            self._db.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as e:
            self._db.close()
            if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFullError(where, expected="room on the disk", got=str(e), hint="free some space") from e
            if getattr(e, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                raise StorageError(where, expected="a lock file", got=str(e)) from e
            raise StorageLockedError(
                where,
                expected=f"no other {holder} that uses it",
                got="one",
                hint=f"stop that {holder}, or use another directory",
            ) from e

    def close(self) -> None:
        """Free the lock."""
        self._db.close()
