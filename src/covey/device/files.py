"""Files of the state directory: written whole or not at all, and a full disk that says so."""

import contextlib
import errno
import hashlib
import itertools
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from covey.types.errors import StorageError, StorageFullError

__all__ = [
    "erase",
    "file_lock",
    "folder_name",
    "lock_error",
    "is_held",
    "quarantined",
    "set_aside",
    "storage_errors",
    "written_whole",
]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn the operating system's errors into Covey's.

    Raises:
        StorageFullError: no room, or a quota is used up.
        StorageError: anything else that the operating system reports.
    """
    try:
        yield
    except OSError as e:
        got = e.strerror or type(e).__name__
        if e.errno in _FULL:
            raise StorageFullError(where, expected="room on the disk", got=got, hint="free some space") from e
        raise StorageError(where, expected="a file that can be read and written", got=got) from e


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``; when the block ends well it is synced and takes ``path``'s place.

    Readers see the old content or the new, never a part. The file is readable by its owner only. If the block raises,
    nothing is kept.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def file_lock(path: Path, *, wait_s: float = 10.0) -> Iterator[None]:
    """Hold a lock between processes, and between the threads of one, while the block runs; it dies with its process.

    SQLite's file lock is the portable one of the standard library.

    Raises:
        StorageError: another process held it for longer than ``wait_s``, or the file cannot be made.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(path, timeout=wait_s, isolation_level=None, check_same_thread=False)
        ) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.Error as e:
        raise lock_error(f"lock {path.name}", "a lock that comes free", e) from e


def lock_error(where: str, expected: str, error: sqlite3.Error) -> StorageError:
    """Return what a lock's failure is: the disk is full, for a lock is a file, or something else."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return StorageFullError(where, expected="room on the disk", got=str(error), hint="free some space")
    return StorageError(where, expected=expected, got=str(error))


def set_aside(path: Path) -> Path:
    """Move a broken file out of the way, under a name that says so; return the new path.

    Raises:
        StorageError: it cannot be moved.
    """
    with storage_errors(f"broken file {path.name}"):
        target = next(t for n in itertools.count(1) if not (t := path.with_name(f"{path.name}.broken-{n}")).exists())
        return path.rename(target)


def quarantined(path: Path) -> list[Path]:
    """Return the broken predecessors of a file that :func:`set_aside` moved away, oldest first."""
    found = (p for p in path.parent.glob(f"{path.name}.broken-*") if p.suffix[8:].isdecimal())
    return sorted(found, key=lambda p: int(p.suffix[8:]))


def is_held(path: Path) -> bool:
    """Say whether somebody holds the lock in a file now."""
    if not path.exists():
        return False
    try:
        with file_lock(path, wait_s=0.0):
            return False
    except StorageError:
        return True


def erase(path: Path, *, keep_folder: bool = False) -> None:
    """Overwrite a file, or every file of a folder, with zeros, and delete it; nothing happens if there is none.

    What the disk itself keeps of overwritten blocks is beyond a program's reach.

    Raises:
        StorageError: a file cannot be written.
    """
    with storage_errors(f"file {path.name}"):
        if path.is_dir() and not path.is_symlink():
            for inner in path.iterdir():
                erase(inner)
            if not keep_folder:
                path.rmdir()
        elif path.is_symlink():
            path.unlink()
        elif path.exists():
            with path.open("r+b") as file:
                left = path.stat().st_size
                while left > 0:
                    left -= file.write(bytes(min(left, 1 << 16)))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()


def folder_name(population: str) -> str:
    """Return a name for a population's folder that every file system takes, whatever the population is called."""
    return hashlib.sha256(population.encode()).hexdigest()[:32]
