"""Free storage and memory: taking the last of either costs the device's owner something."""

from pathlib import Path

import psutil

from covey.device.conditions.source import Reading, failing, holding

__all__ = ["MIN_MEMORY_BYTES", "MIN_STORAGE_BYTES", "Memory", "Storage"]

MIN_STORAGE_BYTES = 256 << 20
MIN_MEMORY_BYTES = 128 << 20
"""What must be free besides what a session takes."""


class Storage:
    """Enough room where the state directory is."""

    max_age_s = 5.0

    def __init__(self, folder: Path, at_least_bytes: int = MIN_STORAGE_BYTES) -> None:
        """Look at the file system of ``folder``."""
        self._folder = folder
        self._at_least_bytes = at_least_bytes

    def read(self) -> Reading:
        """Read the free bytes."""
        try:
            free_bytes = psutil.disk_usage(str(self._folder)).free
        except OSError as e:
            return failing(f"cannot tell how much room the disk has ({e.strerror})")
        if free_bytes >= self._at_least_bytes:
            return holding()
        return failing(f"less than {self._at_least_bytes >> 20} MB free on the disk; free some space")


class Memory:
    """Enough memory that can be had without pushing anything out."""

    max_age_s = 5.0

    def __init__(self, at_least_bytes: int = MIN_MEMORY_BYTES) -> None:
        """Demand so many bytes."""
        self._at_least_bytes = at_least_bytes

    def read(self) -> Reading:
        """Read the available bytes."""
        if psutil.virtual_memory().available >= self._at_least_bytes:
            return holding()
        return failing(f"less than {self._at_least_bytes >> 20} MB of memory free; close something")
