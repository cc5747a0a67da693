"""Plans and checkpoints on the device's disk, by content: downloads that go on where they were cut, and a size cap.

::

    <sha256>        a whole blob, verified when it was stored and again whenever it is read
    .part-<sha256>  the first bytes of one; the next download begins behind them, and its hash is checked at the end
"""

import os
from collections.abc import Callable, Collection, Generator
from contextlib import closing
from pathlib import Path

from covey.device.files import storage_errors
from covey.types.errors import BlobHashError, StorageError
from covey.types.tensors import sha256_hex
from covey.wire.messages import BlobRef

__all__ = ["BlobCache", "MAX_CACHE_BYTES"]

MAX_CACHE_BYTES = 128 << 20

Fetch = Callable[[int], Generator[bytes, None, None]]
_WHERE = "blob cache"


class BlobCache:
    """One directory. One process at a time."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        """Take a directory that exists; ``max_bytes`` is what :meth:`trim` leaves in it."""
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, ref: BlobRef) -> bytes | None:
        """Return a blob that is already here, or None. One that is not what its name says is deleted.

        Raises:
            StorageError: it cannot be read.
        """
        path = self._path(ref)
        try:
            if path.stat().st_size == ref.num_bytes:
                data = path.read_bytes()
                if sha256_hex(data) == ref.sha256:
                    os.utime(path)
                    return data
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as e:
            raise StorageError(_WHERE, expected="a readable file", got=e.strerror or "an error") from e
        return None

    def download(self, ref: BlobRef, fetch: Fetch) -> bytes:
        """Write a blob as it arrives, verify it, and return it.

        Args:
            ref: the blob.
            fetch: yields its bytes from an offset on. If it raises, what came is kept for the next time.

        Raises:
            BlobHashError: more or fewer bytes than ``ref`` says, or others; nothing is kept.
            StorageFullError, StorageError: it could not be written; nothing is kept.
        """
        path, part = self._path(ref), self._folder / f".part-{ref.sha256}"
        with storage_errors(_WHERE):
            start = part.stat().st_size if part.exists() else 0
            if start > ref.num_bytes:
                part.unlink()
                start = 0
        try:
            try:
                self._append(part, ref, start, fetch)
            except BlobHashError:
                if not start:
                    raise
                part.unlink(missing_ok=True)  # what was kept may have been wrong: once more, from the beginning
                self._append(part, ref, 0, fetch)
        except StorageError:  # also a wrong hash: nothing is kept, and a full disk gets its room back
            part.unlink(missing_ok=True)
            raise
        with storage_errors(_WHERE):
            part.replace(path)
            return path.read_bytes()

    def trim(self, keep: Collection[str]) -> None:
        """Delete what was used longest ago until the rest fits under the cap; never what ``keep`` names."""
        with storage_errors(_WHERE):
            files = [(p, p.stat()) for p in self._folder.iterdir() if p.is_file()]
            left = sum(s.st_size for _, s in files)
            for path, status in sorted(files, key=lambda f: f[1].st_mtime_ns):
                if left <= self._max_bytes:
                    break
                if path.name.removeprefix(".part-") not in keep:
                    path.unlink(missing_ok=True)
                    left -= status.st_size

    def _append(self, part: Path, ref: BlobRef, start: int, fetch: Fetch) -> None:
        """Write the bytes from ``start`` on, and verify all of them."""
        size = start
        with storage_errors(_WHERE), part.open("ab") as file:
            part.chmod(0o600)
            if start < ref.num_bytes:
                with closing(fetch(start)) as chunks:  # the connection is free again, also after a failure
                    for chunk in chunks:
                        size += len(chunk)
                        if size > ref.num_bytes:
                            raise BlobHashError("download", expected=f"{ref.num_bytes} bytes", got="more")
                        file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        with storage_errors(_WHERE):
            found = sha256_hex(part.read_bytes())
        if found != ref.sha256:
            raise BlobHashError(
                "download",
                expected=f"{ref.num_bytes} bytes of sha256 {ref.sha256[:12]}…",
                got=f"{size} bytes of {found[:12]}…",
                hint="nothing was kept; the server or something on the way changed it",
            )

    def _path(self, ref: BlobRef) -> Path:
        """Return the name as a path; anything but a hash could leave the directory."""
        if len(ref.sha256) != 64 or not set(ref.sha256) <= set("0123456789abcdef"):
            raise BlobHashError("blob", expected="a SHA-256 in lower-case hex", got="another name")
        return self._folder / ref.sha256
