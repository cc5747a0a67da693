"""The demo's processes: a server and several processes of devices, restarted when they die, ended with certainty."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from covey.types.errors import TransportError

__all__ = ["Child", "Fleet"]

_START_S = 20.0
_GRACE_S = 5.0
_MOST_RESTARTS = 20
_ENV = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Child:
    """One process, and how to start it again."""

    name: str
    args: Sequence[str]
    process: "subprocess.Popen[str] | None" = None
    restarts: int = 0
    errors: list[str] = field(default_factory=list)


class Fleet:
    """Children and what they say. Use as a context manager: no child outlives it, even if this process is killed.

    Children hold the read end of a pipe as their stdin. When this process ends, however it ends, the pipe closes and
    they stop.
    """

    def __init__(self, directory: Path) -> None:
        """Begin without children; their error output goes to ``directory``."""
        self._directory = directory
        self._children: list[Child] = []
        self._lines: queue.Queue[tuple[Child, str]] = queue.Queue()
        self.steps: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def restarts(self) -> int:
        """How many times a child had to be started again."""
        return sum(c.restarts for c in self._children)

    def start(self, name: str, args: Sequence[str]) -> Child:
        """Start ``covey`` with ``args`` as a child."""
        child = Child(name, args)
        self._children.append(child)
        self._spawn(child)
        return child

    def wait_for(self, child: Child, word: str) -> str:
        """Return the first line of a child that starts with ``word``.

        Raises:
            TransportError: none came in time, or the child ended; with the last of what it said.
        """
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s:
            with contextlib.suppress(queue.Empty):
                speaker, line = self._lines.get(timeout=0.05)
                if speaker is child and line.startswith(word):
                    return line
                self._take(speaker, line)
                continue
            if child.process is not None and child.process.poll() is not None:
                break
        raise TransportError(child.name, expected="a process that starts", got=self._last_words(child))

    def look_after(self) -> list[str]:
        """Take in what children said, and start those again that died; return the names of the latter.

        Raises:
            TransportError: a child dies again and again.
        """
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(*self._lines.get_nowait())
        restarted = []
        for child in list(self._children):  # another thread may be adding one
            if child.process is not None and child.process.poll() is not None:
                if child.restarts >= _MOST_RESTARTS:
                    raise TransportError(child.name, expected="a process that lives", got=self._last_words(child))
                child.restarts += 1
                restarted.append(child.name)
                self._spawn(child)
        return restarted

    def close(self) -> None:
        """End all children: politely, then firmly."""
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                child.process.terminate()
        until_s = time.monotonic() + _GRACE_S
        for child in self._children:
            if child.process is None:
                continue
            try:
                child.process.wait(timeout=max(0.05, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            if child.process.stdin is not None:
                child.process.stdin.close()
        self._children.clear()

    def _spawn(self, child: Child) -> None:
        with (self._directory / f"{child.name}.log").open("a") as log:
            child.process = subprocess.Popen(
                [sys.executable, "-m", "covey", *child.args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **_ENV},
                start_new_session=True,  # Ctrl-C in the terminal is for the demo; it then ends its children in order
            )
        threading.Thread(target=self._read, args=(child, child.process), daemon=True).start()

    def _read(self, child: Child, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._lines.put((child, line.rstrip("\n")))

    def _take(self, child: Child, line: str) -> None:
        """Note what a device says; the server's own lines are not needed."""
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event.get("kind") == "counted":
                self.steps[event["device"]] += event["num_steps"]
                self.counted[event["device"]] += 1

    def _last_words(self, child: Child) -> str:
        with contextlib.suppress(OSError):
            lines = (self._directory / f"{child.name}.log").read_text().strip().splitlines()
            if lines:
                return " / ".join(line.strip() for line in lines[-4:])
        return "silence" if child.process is None or child.process.poll() is None else "an early end"
