"""The state directory of a device: its credential, its examples, downloaded blobs, and a lock against a second process.

::

    HOME/lock             held while the directory is in use; the operating system frees it, also after a kill -9
    HOME/credential.json  the bearer credential (mode 0600)
    HOME/examples.db      see covey.device.examples
    HOME/blobs/<sha256>   plans and checkpoints, by content; written whole or not at all
"""

import hashlib
import sqlite3
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType

import msgspec

from covey.device.examples import ExampleStore
from covey.device.files import storage_errors, written_whole
from covey.types.errors import BlobHashError, StorageError, UsageError
from covey.types.tensors import sha256_hex
from covey.wire.messages import BlobRef

__all__ = ["Credential", "DeviceHome"]


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer credential, for whom it is good, and when to renew it (seconds since the Unix epoch)."""

    server: str
    population: str
    bearer: str
    renew_at_s: float


class DeviceHome:
    """An open state directory. Use as a context manager, or close it."""

    def __init__(self, path: Path, *, max_example_bytes: int | None = None) -> None:
        """Open the directory, or make it.

        Args:
            path: the directory.
            max_example_bytes: how large the example store may grow.

        Raises:
            UsageError: another process uses it.
            StorageError: it cannot be read and written.
        """
        self.path = path
        self._blobs = path / "blobs"
        with storage_errors(f"state directory {path}"):
            self._blobs.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        self._lock = _locked(path / "lock")
        try:
            self.examples = ExampleStore.of_home(path, max_bytes=max_example_bytes)
            with storage_errors(f"state directory {path}"):
                for leftover in (*path.glob(".partial-*"), *self._blobs.glob(".partial-*")):
                    leftover.unlink()  # of a process that was killed while it wrote
        except BaseException:
            self._lock.close()
            raise

    def credential(self, server: str, population: str) -> Credential | None:
        """Return the stored credential if it is one for this server and population."""
        try:
            stored = msgspec.json.decode((self.path / "credential.json").read_bytes(), type=Credential)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None  # a device that has none, or a broken one, enrolls
        return stored if (stored.server, stored.population) == (server, population) else None

    def save_credential(self, credential: Credential) -> None:
        """Store a credential in place of the former one.

        Raises:
            StorageFullError, StorageError: it could not be written; the former one is still there.
        """
        with storage_errors("credential"), written_whole(self.path / "credential.json") as file:
            file.write(msgspec.json.encode(credential))

    def forget_credential(self) -> None:
        """Delete the credential."""
        with storage_errors("credential"):
            (self.path / "credential.json").unlink(missing_ok=True)

    def blob(self, ref: BlobRef) -> bytes | None:
        """Return a blob that is already here, or None. One that is not what its name says is deleted."""
        path = self._blobs / _checked_name(ref)
        try:
            if path.stat().st_size == ref.num_bytes:
                data = path.read_bytes()
                if sha256_hex(data) == ref.sha256:
                    return data
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as e:
            raise StorageError("blob cache", expected="a readable file", got=e.strerror or "an error") from e
        return None

    def save_blob(self, ref: BlobRef, chunks: Iterable[bytes]) -> bytes:
        """Write a blob as it arrives, verify it, and return it.

        Raises:
            BlobHashError: more or fewer bytes than ``ref`` says, or others; nothing is kept.
            StorageFullError, StorageError: it could not be written; nothing is kept.
        """
        path = self._blobs / _checked_name(ref)
        digest, size = hashlib.sha256(), 0
        with storage_errors("blob cache"), written_whole(path) as file:
            for chunk in chunks:
                size += len(chunk)
                if size > ref.num_bytes:
                    raise BlobHashError("download", expected=f"{ref.num_bytes} bytes", got="more")
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != ref.sha256:
                raise BlobHashError(
                    "download",
                    expected=f"{ref.num_bytes} bytes of sha256 {ref.sha256[:12]}…",
                    got=f"{size} bytes of {digest.hexdigest()[:12]}…",
                    hint="nothing was kept; the server or something on the way changed it",
                )
        with storage_errors("blob cache"):
            return path.read_bytes()

    def keep_only(self, names: Collection[str]) -> None:
        """Delete every blob but these: checkpoints change each round."""
        with storage_errors("blob cache"):
            for path in self._blobs.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the store and free the lock."""
        self.examples.close()
        self._lock.close()

    def __enter__(self) -> "DeviceHome":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _checked_name(ref: BlobRef) -> str:
    """Return the name as a file name; anything but a hash could leave the directory."""
    if len(ref.sha256) != 64 or not set(ref.sha256) <= set("0123456789abcdef"):
        raise BlobHashError("blob", expected="a SHA-256 in lower-case hex", got="another name")
    return ref.sha256


def _locked(path: Path) -> sqlite3.Connection:
    # SQLite's file lock is the portable one of the standard library: it works on every platform, between the threads
    # of one process as well, and dies with its process.
    try:
        lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as e:
        raise StorageError(f"state directory {path.parent}", expected="a lock file", got=str(e)) from e
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as e:
        lock.close()
        if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise UsageError(
                f"state directory {path.parent}",
                expected="a directory that no other process uses",
                got="one in use",
                hint="every device needs a --home of its own",
            ) from e
        raise StorageError(f"state directory {path.parent}", expected="a lock file", got=str(e)) from e
    return lock
