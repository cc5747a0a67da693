"""How a simulation and one worker process talk: a pipe, and beside it memory that both see.

A round's checkpoint and the workers' sums are megabytes, and a pipe takes them in small pieces, each with a change of
process, while nobody trains. Here a message's large buffers (arrays, and what pickles as such) are copied into the
shared memory and from there, and only the rest goes through the pipe.

Each direction has a half of the memory. Law: a half is written only once the other side has copied what was there
before; a message that comes sooner, or is larger than the half, goes through the pipe whole.
"""

import mmap
import os
import pickle
import struct
import tempfile
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Channel", "shared_memory"]

_HALF_BYTES = 1 << 29  # of address space: pages that are never written take no memory
_COUNTER = struct.Struct("<Q")
_LARGE_BYTES = 1 << 15


def shared_memory() -> int:
    """Return the file descriptor of new memory for a :class:`Channel`; it is nobody's once all have closed it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("covey")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, 2 * _HALF_BYTES)
    return descriptor


class Channel:
    """One end. Not thread-safe."""

    def __init__(self, connection: Connection, descriptor: int, *, is_worker: bool) -> None:
        """Take one end of a pipe and the memory, which stays mapped when ``descriptor`` is closed."""
        self.connection = connection
        self._memory = mmap.mmap(descriptor, 2 * _HALF_BYTES)
        self._ours, self._theirs = (_HALF_BYTES, 0) if is_worker else (0, _HALF_BYTES)
        self._num_written = self._num_read = 0

    def send(self, message: Any) -> None:
        """Send a message. Raises OSError where the other side is gone."""
        buffers: list[pickle.PickleBuffer] = []

        def keep_inside(buffer: pickle.PickleBuffer) -> bool:
            is_small = buffer.raw().nbytes < _LARGE_BYTES
            if not is_small:
                buffers.append(buffer)
            return is_small

        data = pickle.dumps(message, protocol=5, buffer_callback=keep_inside)
        raws = [b.raw() for b in buffers]
        (num_taken,) = _COUNTER.unpack_from(self._memory, self._ours)
        if raws and (num_taken != self._num_written or sum(map(len, raws)) > _HALF_BYTES - _COUNTER.size):
            data, raws = pickle.dumps(message, protocol=5), []
        offset = self._ours + _COUNTER.size
        for raw in raws:
            self._memory[offset : offset + len(raw)] = raw
            offset += len(raw)
        self._num_written += bool(raws)
        self.connection.send_bytes(pickle.dumps(([len(r) for r in raws], data)))

    def recv(self) -> Any:
        """Return the next message. Raises EOFError or OSError where the other side is gone."""
        sizes, data = pickle.loads(self.connection.recv_bytes())
        offset, buffers = self._theirs + _COUNTER.size, []
        for size in sizes:
            buffers.append(bytearray(memoryview(self._memory)[offset : offset + size]))
            offset += size
        if sizes:
            self._num_read += 1
            _COUNTER.pack_into(self._memory, self._theirs, self._num_read)
        return pickle.loads(data, buffers=buffers)

    def close(self) -> None:
        """Close this end: the other one's next :meth:`recv` raises EOFError."""
        self.connection.close()
        self._memory.close()
