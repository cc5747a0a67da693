"""A device's training gives way to whatever else its owner runs."""

import os
import sys
from contextlib import suppress

import psutil

__all__ = ["give_way"]

NICENESS = 10


def give_way() -> None:
    """Lower the priority of this process for processor and disk. For a process of its own, not for an application's.

    Where the platform refuses, nothing changes. Threads that exist already keep theirs on Linux.
    """
    process = psutil.Process()
    with suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        elif os.nice(0) < NICENESS:
            os.nice(NICENESS - os.nice(0))
    with suppress(psutil.Error, OSError, AttributeError):  # macOS has none
        process.ionice(getattr(psutil, "IOPRIO_CLASS_IDLE", None) or psutil.IOPRIO_LOW)
