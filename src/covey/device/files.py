"""Files of the state directory: written whole or not at all, and a full disk that says so."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from covey.types.errors import StorageError, StorageFullError

__all__ = ["storage_errors", "written_whole"]

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
