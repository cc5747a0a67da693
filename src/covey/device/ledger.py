"""What left this device, and what came: an append-only, hash-chained record that the device's owner can read.

One JSON object a line, ``{"entry": {...}, "hash": "..."}``. The hash is SHA-256 of the former line's hash and the
entry's bytes as they stand (keys sorted, no spaces), so that an entry that is changed, dropped or put elsewhere later
breaks the chain there. The chain shows accidents and clumsy edits. It cannot show that the newest entries were cut off,
nor withstand somebody who may write the file and computes every hash anew: note the head's hash elsewhere to find out.

An entry is in the ledger once :meth:`Ledger.append` has returned: it is synced before. A line that a crash cut short is
removed by the next ``append``, which leaves an entry of the kind ``repaired``; a ledger whose chain is broken is moved
aside whole, and a new chain begins with an entry of the kind ``quarantined``. Reading never changes a byte.
"""

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey.device.files import file_lock, set_aside, storage_errors
from covey.types.errors import LedgerBrokenError, UsageError

__all__ = ["KINDS", "Chain", "Ledger", "LedgerEntry"]

KINDS = (
    "session_started",
    "sending",
    "counted",
    "gave_up",
    "lost",
    "refused",
    "accepted",
    "paused",
    "resumed",
    "forgot",
    "repaired",
    "quarantined",
)
"""What an entry can tell of.

``sending`` stands before an upload leaves, with the hash of its bytes; ``counted``, ``gave_up`` and ``lost`` end a
session. ``refused`` is a plan outside the owner's terms, or a population that the person wants no part in; ``paused``,
``resumed``, ``accepted`` and ``forgot`` are the person's own acts.
"""

_BEGIN = b'{"entry":'
_GENESIS = hashlib.sha256(b"covey device ledger v1").digest()


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened. What does not apply keeps its default.

    Attributes:
        at_s: when, in seconds since the Unix epoch.
        kind: one of :data:`KINDS`.
        population: of whom.
        task: name of the task within the population.
        session: the server's name for this device's part in one round; new for each.
        round: number of the round.
        plan: the plan's SHA-256.
        summary: what the plan does, for a person to read.
        num_examples: how many of the device's examples were used, or forgotten.
        bytes_down: bytes of plan, checkpoint and messages that came.
        bytes_up: bytes that left, or are about to.
        mode: ``secure`` or ``plain``.
        min_cohort: the fewest devices whose sum may be opened.
        epsilon: of the differential privacy that the plan promises; None: it promises none.
        delta: beside ``epsilon``.
        body_sha256: of the bytes that leave.
        reason: why, in words or as an error's code; never data.
    """

    at_s: float
    kind: str
    population: str = ""
    task: str = ""
    session: str = ""
    round: int = 0
    plan: str = ""
    summary: str = ""
    num_examples: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    mode: str = ""
    min_cohort: int = 0
    epsilon: float | None = None
    delta: float | None = None
    body_sha256: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that holds.

    Attributes:
        num_entries: its length.
        head: the last entry's hash in hex; whoever noted it earlier can tell whether the entries up to it still stand.
        torn_bytes: bytes of a line behind it that a crash cut short; the next ``append`` removes them.
    """

    num_entries: int
    head: str
    torn_bytes: int


class _Line(msgspec.Struct, frozen=True):
    entry: msgspec.Raw
    hash: str


@dataclass(slots=True)
class _State:
    """How far a file was read: the bytes and entries up to here form a chain that ends in ``digest``."""

    num_bytes: int = 0
    num_entries: int = 0
    digest: bytes = _GENESIS
    torn_bytes: int = 0


class Ledger:
    """The ledger in one file. Safe to share between threads; several processes may use one file."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made by the first :meth:`append`."""
        self.path = path
        self._lock_path = path.with_name(f"{path.name}.lock")
        self._thread_lock = threading.Lock()
        self._known = _State()
        self._stamp: object = None

    @classmethod
    def of_home(cls, home: Path) -> "Ledger":
        """Return the ledger of a device's state directory, whether or not an agent has it open."""
        return cls(home / "ledger.jsonl")

    def append(self, entry: LedgerEntry) -> int:
        """Write an entry, sync it, and return its number, from 1.

        Raises:
            UsageError: an unknown kind.
            StorageFullError: no room; the ledger is as it was.
            StorageError: the file cannot be written, or another process holds it for too long.
        """
        if entry.kind not in KINDS:
            raise UsageError("ledger entry: kind", expected=f"one of {', '.join(KINDS)}", got=entry.kind[:20])
        with self._thread_lock, file_lock(self._lock_path):
            state, notes = self._writable_state(entry.at_s)
            lines = []
            digest = state.digest
            for each in (*notes, entry):
                data = msgspec.json.encode(each, order="sorted")
                digest = _linked(digest, data)
                lines.append(b'%b%b,"hash":"%b"}\n' % (_BEGIN, data, digest.hex().encode()))
            self._write(b"".join(lines), state.num_bytes)
            num_bytes = state.num_bytes + sum(map(len, lines))
            self._known = _State(num_bytes, state.num_entries + len(lines), digest)
            self._stamp = _stamp(self.path)
            return self._known.num_entries

    def entries(self, *, newest: int | None = None) -> Iterator[LedgerEntry]:
        """Yield the entries, oldest first; only the last ``newest`` of them if told.

        Lines that cannot be read are left out; :meth:`verify` tells of them.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        except OSError:
            with storage_errors(f"ledger {self.path.name}"):
                raise
        for line in lines if newest is None else lines[max(0, len(lines) - newest) :]:
            try:
                yield msgspec.json.decode(msgspec.json.decode(line, type=_Line).entry, type=LedgerEntry)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue

    def verify(self) -> Chain:
        """Check every link, from the first entry on.

        Raises:
            LedgerBrokenError: names the line where the chain breaks.
            StorageError: the file cannot be read.
        """
        with storage_errors(f"ledger {self.path.name}"):
            if not self.path.exists():
                return Chain(0, _GENESIS.hex(), 0)
            # A writer holds the lock until its line is whole, so what is torn here is the work of a crash.
            with self._thread_lock, file_lock(self._lock_path):
                state = self._followed()
        return Chain(state.num_entries, state.digest.hex(), state.torn_bytes)

    def _writable_state(self, at_s: float) -> tuple[_State, list[LedgerEntry]]:
        """Return where to write, and what to say of a file that had to be repaired or moved aside."""
        try:
            with storage_errors(f"ledger {self.path.name}"):
                if not self.path.exists():
                    return _State(), []
                # Untouched since this object wrote last: no need to read it all again.
                state = self._known if _stamp(self.path) == self._stamp else self._followed()
        except LedgerBrokenError as error:
            name = set_aside(self.path).name
            reason = f"{error.where}: {error.got}; kept as {name}"
            return _State(), [LedgerEntry(at_s=at_s, kind="quarantined", reason=reason)]
        if not state.torn_bytes:
            return state, []
        reason = f"removed {state.torn_bytes} bytes of a last line that a crash cut short: it was never acknowledged"
        return state, [LedgerEntry(at_s=at_s, kind="repaired", reason=reason)]

    def _followed(self) -> _State:
        """Follow the chain to the end of the file. Raises LedgerBrokenError."""
        done = _State()
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") and _may_be_torn(line):
                    done.torn_bytes = len(line)
                    break
                try:
                    read = msgspec.json.decode(line, type=_Line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as e:
                    raise self._broken(done, "no entry") from e
                digest = _linked(done.digest, bytes(read.entry))
                if digest.hex() != read.hash:
                    raise self._broken(done, "an entry that was changed, or one that is missing before it")
                done.num_bytes += len(line)
                done.num_entries += 1
                done.digest = digest
        return done

    def _broken(self, state: _State, got: str) -> LedgerBrokenError:
        return LedgerBrokenError(
            f"ledger {self.path.name}: line {state.num_entries + 1}",
            expected="an entry that continues the chain",
            got=got,
            hint="the lines before it still hold; the next entry moves this file aside and begins a new chain",
        )

    def _write(self, data: bytes, at: int) -> None:
        with storage_errors(f"ledger {self.path.name}"):
            is_new = not self.path.exists()
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(handle, "r+b", buffering=0) as file:
                file.truncate(at)  # what a crash left behind the last whole line
                file.seek(at)
                try:
                    left = memoryview(data)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(at)
                    raise
            if is_new:
                _sync_folder(self.path.parent)


def _linked(before: bytes, entry: bytes) -> bytes:
    """Return the hash of an entry behind the one with the hash ``before``."""
    return hashlib.sha256(before + entry).digest()


def _may_be_torn(line: bytes) -> bool:
    """Say whether a crash may have left this behind the last whole line: a line's beginning, or a hole in the file."""
    return line[: len(_BEGIN)] == _BEGIN[: len(line)] or not line.strip(b"\0")


def _stamp(path: Path) -> object:
    """Return what changes when another process, or a person, writes to the file or puts another in its place."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _sync_folder(folder: Path) -> None:
    """Make a new file's name survive a power cut, too, where the platform can open a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
