"""Proofs of being a device of the application, from a file that the application keeps filled."""

import sys
import threading
from pathlib import Path

from covey.types.errors import UsageError

__all__ = ["AttestationFile", "no_tokens"]


def no_tokens() -> str:
    """Return the proof of a device that nobody asks for one."""
    return ""


class AttestationFile:
    """Gives one line of a file after the other. The file is read again each time: the application may renew it.

    Thread-safe. A line that was given is not given again while there are others; the last one then stays.
    """

    def __init__(self, path: Path) -> None:
        """Read from ``path``; ``-`` is stdin, read once, now.

        Raises:
            UsageError: nothing there.
        """
        self._path = path
        self._lines = self._read_lines(sys.stdin.read()) if str(path) == "-" else None
        self._used: set[str] = set()
        self._lock = threading.Lock()
        if not (self._lines if self._lines is not None else self._current()):
            raise UsageError(f"attestation {path}", expected="a token on a line", got="none")

    def __call__(self) -> str:
        """Return a proof that was not given before, or else the last one.

        Raises:
            UsageError: the file is gone, or empty.
        """
        with self._lock:
            lines = self._current() if self._lines is None else self._lines
            if not lines:
                raise UsageError(f"attestation {self._path}", expected="a token on a line", got="none")
            chosen = next((line for line in lines if line not in self._used), lines[-1])
            self._used = (self._used & set(lines)) | {chosen}
            return chosen

    def _current(self) -> list[str]:
        try:
            return self._read_lines(self._path.read_text())
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"attestation {self._path}", expected="a readable text file", got=str(e)[:100]) from e

    @staticmethod
    def _read_lines(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if line.strip()]
