"""Parts of the leak test: which bytes are secret, where they are looked for, and a server that is killed at a phase.

A secret's *windows* are its runs of 16 bytes at every offset. A window with fewer than eight different bytes is left
out: runs of zeros, a header's ``1.0``, and other constants are in every file. All the others must not be found, as they
are or written as hexadecimal digits, as base64, or as Python shows bytes.
"""

import base64
import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

WINDOW, LEAST_DIFFERENT = 16, 8
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){16,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}")
_SHOWN = re.compile(rb"\\x([0-9a-f]{2})|\\([\\'nrt])")
_ESCAPES = {b"\\": b"\\", b"'": b"'", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class Detector:
    """Finds windows of secrets in bytes."""

    def __init__(self, secrets):
        found = [w for w in map(_windows, secrets) if len(w)]
        self.windows = {bytes(w) for w in np.unique(np.concatenate(found), axis=0)} if found else set()
        self._begins = np.zeros(1 << 16, bool)  # most places are out of the question by their first two bytes
        self._begins[[int.from_bytes(w[:2], "little") for w in self.windows]] = True

    def finds(self, data: bytes) -> bool:
        """Whether any window is in ``data``, in any of the four ways to write it."""
        return any(self._finds(form) for form in _forms(data))

    def search(self, *roots: Path) -> list[Path]:
        """Return the files below ``roots`` in which, or in whose name, a window is."""
        files = [p for root in roots for p in root.rglob("*") if p.is_file()]
        return [p for p in files if self.finds(p.read_bytes()) or self.finds(p.name.encode())]

    def _finds(self, data: bytes) -> bool:
        for offset in range(2):
            words = np.frombuffer(data, "<u2", max(0, len(data) - offset) // 2, min(offset, len(data)))
            for i in np.flatnonzero(self._begins[words]):
                if data[offset + 2 * i : offset + 2 * i + WINDOW] in self.windows:
                    return True
        return False


def _windows(data: bytes) -> np.ndarray:
    if len(data) < WINDOW:
        return np.zeros((0, WINDOW), np.uint8)
    all_of_them = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), WINDOW)
    different = 1 + np.count_nonzero(np.diff(np.sort(all_of_them, axis=1), axis=1), axis=1)
    return all_of_them[different >= LEAST_DIFFERENT]


def _forms(data: bytes):
    yield data
    for run in _HEX.findall(data):
        yield bytes.fromhex(run.decode())
    for run in _BASE64.findall(data.replace(b"-", b"+").replace(b"_", b"/")):
        for start in range(4):  # where a text begins inside a longer run is not known
            whole = run[start:]
            yield base64.b64decode(whole[: len(whole) // 4 * 4])
    if b"\\x" in data:
        yield _SHOWN.sub(lambda m: bytes.fromhex(m[1].decode()) if m[1] else _ESCAPES[m[2]], data)


class Gate:
    """Lets the first ``through`` messages of a step pass and holds the others back, until it is opened."""

    def __init__(self, step: str, through: int):
        self.step, self.through = step, through
        self.answered = 0
        self._asked = 0
        self._lock, self._open = threading.Lock(), threading.Event()

    def before(self, step):
        if step != self.step:
            return
        with self._lock:
            self._asked += 1
            held = self._asked > self.through
        if held:
            assert self._open.wait(60), "held for ever"

    def after(self, step):
        with self._lock:
            self.answered += step == self.step

    def open(self):
        self._open.set()


class ServerProcess:
    """``covey serve`` in a process of its own: its temporary files and what it prints go to folders of their own."""

    def __init__(self, directory: Path, base: Path, faults: str = ""):
        """Start it; ``faults`` is Python that runs in it first: how the tests make a server that leaks."""
        self.tmp, self.logs, self.directory = base / "tmp", base / "logs", directory
        for folder in (self.tmp, self.logs):
            folder.mkdir(exist_ok=True, parents=True)
        code = f"{faults}\nfrom covey.cli import main\nmain()\n"
        out = self.logs / f"{len(list(self.logs.iterdir()))}.txt"
        with out.open("wb") as file:
            self.child = subprocess.Popen(
                [sys.executable, "-c", code, "serve", "--dir", str(directory)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.tmp)},
                cwd=self.tmp,
            )
        end = time.monotonic() + 60
        while b"\n" not in (greeting := out.read_bytes()):
            assert self.child.poll() is None and time.monotonic() < end, greeting
            time.sleep(0.01)
        self.url = greeting.decode().split(" on ")[1].split(",")[0]

    @property
    def open_files(self) -> set[str]:
        """The regular files that it has open now, deleted ones too."""
        links = Path(f"/proc/{self.child.pid}/fd")
        found = set()
        for link in links.iterdir():
            with contextlib.suppress(OSError):  # closed in the meantime
                found.add(str(link.readlink()))
        return {name for name in found if name.startswith("/") and not name.startswith(("/dev/", "/proc/"))}

    def kill(self):
        self.child.kill()
        self.child.wait(30)
