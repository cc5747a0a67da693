"""Run a tool that comes with the operating system, briefly."""

import subprocess
from collections.abc import Sequence

__all__ = ["output_of"]

_MOST_S = 5.0


def output_of(command: Sequence[str]) -> str:
    """Return what a command prints; empty if it is not there, fails, or takes more than five seconds."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_MOST_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
