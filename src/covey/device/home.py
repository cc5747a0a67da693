"""The state directory of a device: its credential, its examples, downloaded blobs, and a lock against a second process.

::

    HOME/lock             held while the directory is in use; the operating system frees it, also after a kill -9
    HOME/credentials.json  the bearer credentials (mode 0600)
    HOME/examples.db      see covey.device.examples
    HOME/blobs/           plans and checkpoints, by content: see covey.device.blobs
    HOME/populations.json, schedule.json   see covey.device.populations and covey.device.scheduler
    HOME/ledger.jsonl, choices.json        see covey.device.ledger and covey.device.choices
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from covey.device.blobs import MAX_CACHE_BYTES, BlobCache
from covey.device.examples import ExampleStore
from covey.device.files import lock_error, storage_errors, written_whole
from covey.types.errors import UsageError

__all__ = ["Credential", "DeviceHome"]


_CREDENTIALS = "credentials.json"
_HOLDER = "agent.pid"
"""Who holds the lock, for people to read; the lock itself is what counts."""


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer credential, for whom it is good, and when to renew it (seconds since the Unix epoch)."""

    server: str
    population: str
    bearer: str
    renew_at_s: float


class DeviceHome:
    """An open state directory. Use as a context manager, or close it."""

    def __init__(
        self, path: Path, *, max_example_bytes: int | None = None, max_cache_bytes: int = MAX_CACHE_BYTES
    ) -> None:
        """Open the directory, or make it.

        Args:
            path: the directory.
            max_example_bytes: how large the example store may grow.
            max_cache_bytes: how much of plans and checkpoints is kept besides those in use.

        Raises:
            UsageError: another process uses it.
            StorageError: it cannot be read and written.
        """
        self.path = path
        folder = path / "blobs"
        with storage_errors(f"state directory {path}"):
            folder.mkdir(parents=True, exist_ok=True)
            path.chmod(0o700)
        self._lock = _locked(path / "lock")
        self.blobs = BlobCache(folder, max_bytes=max_cache_bytes)
        try:
            with storage_errors(f"state directory {path}"):
                (path / _HOLDER).write_text(f"{os.getpid()}\n")
            self.examples = ExampleStore.of_home(path, max_bytes=max_example_bytes)
            with storage_errors(f"state directory {path}"):
                for leftover in (*path.glob(".partial-*"), *folder.glob(".partial-*")):
                    leftover.unlink()  # of a process that was killed while it wrote
        except BaseException:
            self._lock.close()
            raise

    def credential(self, server: str, population: str) -> Credential | None:
        """Return the stored credential for this server and population, if there is one."""
        return self._credentials().get((server, population))

    def save_credential(self, credential: Credential) -> None:
        """Store a credential in place of the former one for its server and population.

        Raises:
            StorageFullError, StorageError: it could not be written; the former ones are still there.
        """
        self._write_credentials({**self._credentials(), (credential.server, credential.population): credential})

    def forget_credential(self, server: str, population: str) -> None:
        """Delete the credential for this server and population."""
        kept = self._credentials()
        if kept.pop((server, population), None) is not None:
            self._write_credentials(kept)

    def _credentials(self) -> dict[tuple[str, str], Credential]:
        try:
            stored = msgspec.json.decode((self.path / _CREDENTIALS).read_bytes(), type=list[Credential])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}  # a device that has none, or broken ones, enrolls
        return {(c.server, c.population): c for c in stored}

    def _write_credentials(self, credentials: dict[tuple[str, str], Credential]) -> None:
        with storage_errors("credentials"), written_whole(self.path / _CREDENTIALS) as file:
            file.write(msgspec.json.encode(list(credentials.values())))

    def close(self) -> None:
        """Close the store and free the lock."""
        self.examples.close()
        with suppress(OSError):
            (self.path / _HOLDER).unlink()
        self._lock.close()

    def __enter__(self) -> "DeviceHome":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _locked(path: Path) -> sqlite3.Connection:
    # SQLite's file lock is the portable one of the standard library: it works on every platform, between the threads
    # of one process as well, and dies with its process.
    try:
        lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as e:
        raise lock_error(f"state directory {path.parent}", "a lock file", e) from e
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as e:
        lock.close()
        if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise UsageError(
                f"state directory {path.parent}",
                expected="a directory that no other process uses",
                got=f"one in use{_holder(path.parent)}",
                hint="one agent serves all populations of a device; another device needs a --home of its own",
            ) from e
        raise lock_error(f"state directory {path.parent}", "a lock file", e) from e
    return lock


def _holder(path: Path) -> str:
    with suppress(OSError, ValueError):
        return f" by process {int((path / _HOLDER).read_text())}"
    return ""
