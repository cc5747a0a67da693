"""What is large: a small pool of buffers for the bodies that come in, and the few blobs that go out all the time."""

from collections import deque

from covey.storage.interface import Storage
from covey.types.errors import BusyError

__all__ = ["BlobCache", "Buffers"]

_CACHED_BLOBS = 4


class Buffers:
    """Memory for report bodies: bounded by the pool, not by the cohort. One thread."""

    def __init__(self, most: int) -> None:
        """Begin with none; at most ``most`` are made."""
        self._most = most
        self.num = 0
        self.free: deque[bytearray] = deque()

    def take(self, num_bytes: int) -> bytearray:
        """Take a buffer of at least so many bytes; whoever takes it gives it back.

        Raises:
            BusyError: all are in use.
        """
        while self.free:
            if len(buffer := self.free.pop()) >= num_bytes:
                return buffer
            self.num -= 1  # made before a task with larger updates came
        if self.num >= self._most:
            raise BusyError("report", expected="a free buffer", got="all in use", hint="try again shortly")
        self.num += 1
        return bytearray(num_bytes)

    def give(self, buffer: bytearray, used: int) -> None:
        """Overwrite what was used and put the buffer back."""
        buffer[:used] = bytes(used)
        self.free.append(buffer)


class BlobCache:
    """The blobs that were asked for last: a plan and a checkpoint are downloaded by a whole cohort at once."""

    def __init__(self, storage: Storage) -> None:
        """Begin empty."""
        self._storage = storage
        self._blobs: dict[str, bytes] = {}

    def get(self, sha256: str) -> bytes:
        """Return a blob. Raises NotFoundError, or BlobHashError where the stored bytes were changed."""
        if sha256 not in self._blobs:
            data = self._storage.blob(sha256)
            while len(self._blobs) >= _CACHED_BLOBS:
                del self._blobs[next(iter(self._blobs))]
            self._blobs[sha256] = data
        return self._blobs[sha256]
