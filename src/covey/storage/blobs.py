"""Blobs in a directory, named by their SHA-256: written whole or not at all, verified when read."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from covey.types.errors import BlobHashError, NotFoundError, StorageError, StorageFullError
from covey.types.tensors import sha256_hex

__all__ = ["BlobDir", "storage_errors"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Turn the operating system's errors into StorageFullError or StorageError."""
    try:
        yield
    except OSError as e:
        got = e.strerror or type(e).__name__
        if e.errno in _FULL:
            raise StorageFullError(where, expected="room on the disk", got=got, hint="free some space") from e
        raise StorageError(where, expected="a file that can be read and written", got=got) from e


class BlobDir:
    """A directory of immutable blobs."""

    def __init__(self, path: Path, *, is_own: bool = True) -> None:
        """Open the directory, or make it.

        What a killed process left half-written is removed, unless the directory is another's (``is_own``): that one may
        be writing right now.
        """
        self._path = path
        with storage_errors("blob directory"):
            path.mkdir(parents=True, exist_ok=True)
            for leftover in path.glob(".partial-*") if is_own else ():
                leftover.unlink()

    def put(self, data: bytes) -> str:
        """Store ``data`` and return its name. When this returns, the blob survives a power failure.

        Raises:
            StorageFullError, StorageError: nothing was kept.
        """
        name = sha256_hex(data)
        path = self._path / name
        if path.exists():
            return name
        with storage_errors("blob directory"):
            handle, temporary = tempfile.mkstemp(dir=self._path, prefix=".partial-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            self._sync()
        return name

    def get(self, name: str) -> bytes:
        """Return a blob.

        Raises:
            NotFoundError: none of that name.
            BlobHashError: its bytes were changed on the disk.
        """
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise NotFoundError("blob", expected="a SHA-256 in lower-case hex", got="another name")
        try:
            with storage_errors("blob directory"):
                data = (self._path / name).read_bytes()
        except StorageError as e:
            if isinstance(e.__cause__, FileNotFoundError):
                raise NotFoundError("blob", expected="a stored blob", got="an unknown name") from e
            raise
        if sha256_hex(data) != name:
            raise BlobHashError(
                f"blob {name[:12]}…", expected="the bytes of that name", got="others", hint="restore it from a backup"
            )
        return data

    def delete(self, name: str) -> None:
        """Delete a blob; one that is not there is fine."""
        with storage_errors("blob directory"):
            (self._path / name).unlink(missing_ok=True)

    def _sync(self) -> None:
        """Make the directory's entries safe as well; not every platform can, and those do it by themselves."""
        with contextlib.suppress(OSError):
            handle = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
