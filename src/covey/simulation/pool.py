"""Worker processes: each pinned to one thread, fed one message at a time, ended with certainty.

Workers are started as programs of their own with ``python -m``, not forked: the number of threads must stand in the
environment before NumPy, onnxruntime or XLA load, and a caller needs no ``if __name__ == "__main__"``.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from covey.data.locate import cache_dir
from covey.simulation.channel import Channel, shared_memory
from covey.simulation.messages import Crashed, Failed
from covey.types.errors import CoveyError, WorkerError

__all__ = ["WorkerPool", "available_cores", "worker_environment"]

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",  # how many threads XLA starts
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}
"""For glibc: keep freed blocks of a model's size. Every session frees some dozen of them, and to get them from the
system again page by page took a quarter of the time of the MNIST 2NN."""
_AHEAD = 1
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false --xla_cpu_prefer_vector_width=512"
"""One thread; and the widest registers that there are, where XLA prefers half of AVX-512's."""


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker: this process's, with one thread, kept memory and a cache for XLA."""
    env = {**os.environ, **_ONE_THREAD, **_KEPT_MEMORY}
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir().with_name("xla")))
    env.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    env.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    return env


class WorkerPool:
    """Some workers. Use as a context manager: at its end, whatever happened, no process is left.

    Answers come in any order; whoever needs an order sorts them.
    """

    def __init__(self, num_workers: int, setup: Any) -> None:
        """Start the workers and give them their set-up; :meth:`ready` waits for it."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._channels: list[Channel] = []
        try:
            for _ in range(num_workers):
                self._start(setup)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._channels)

    def ready(self) -> None:
        """Wait until every worker has its set-up. Raises what went wrong in one."""
        for channel in self._channels:
            self._answer(channel)

    def everywhere(self, message: Any) -> list[Any]:
        """Send one message to every worker; return the answers in the workers' order."""
        for channel in self._channels:
            self._send(channel, message)
        return [self._answer(channel) for channel in self._channels]

    def scattered(self, messages: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Send each message to whichever worker is free, in order; yield (its index, the answer) as they come.

        While many are left, a worker gets the next one before it has answered, and need not wait for it.
        """
        pending = deque(enumerate(messages))
        busy: dict[Connection, tuple[Channel, deque[int]]] = {c.connection: (c, deque()) for c in self._channels}

        def feed(channel: Channel) -> None:
            _, asked = busy[channel.connection]
            while pending and (not asked or (len(asked) <= _AHEAD and len(pending) > len(self._channels))):
                index, message = pending.popleft()
                asked.append(index)
                self._send(channel, message)

        for channel in self._channels:
            feed(channel)
        while busy := {k: v for k, v in busy.items() if v[1]}:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                channel, asked = busy[ready]
                answer, index = self._answer(channel), asked.popleft()
                feed(channel)
                yield index, answer

    def close(self) -> None:
        """End every worker: politely, then firmly."""
        for channel in self._channels:
            with contextlib.suppress(OSError):
                channel.close()
        for process in self._processes:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._channels, self._processes = [], []

    def _start(self, setup: Any) -> None:
        ours, theirs = multiprocessing.Pipe()
        memory = shared_memory()
        try:
            channel = Channel(ours, memory, is_worker=False)
            self._channels.append(channel)
            process = subprocess.Popen(
                [sys.executable, "-m", "covey.simulation", str(theirs.fileno()), str(memory)],
                env=worker_environment(),
                pass_fds=[theirs.fileno(), memory],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is the parent's: a worker that starts does not know yet to ignore it
            )
        finally:
            theirs.close()
            os.close(memory)
        self._processes.append(process)
        self._send(channel, setup)

    def _send(self, channel: Channel, message: Any) -> None:
        try:
            channel.send(message)
        except OSError as e:
            raise self._gone(channel) from e

    def _answer(self, channel: Channel) -> Any:
        try:
            answer = channel.recv()
        except (EOFError, OSError) as e:
            raise self._gone(channel) from e
        if isinstance(answer, Failed):
            raise answer.error
        if isinstance(answer, Crashed):
            raise RuntimeError(f"a worker failed:\n{answer.traceback}")
        return answer

    def _gone(self, channel: Channel) -> CoveyError:
        index = self._channels.index(channel)
        status = self._processes[index].wait()
        return WorkerError(
            f"worker {index + 1}",
            expected="a process that lives",
            got=f"one that ended with status {status}",
            hint="the system may have run out of memory: try --workers 1, or a smaller batch",
        )
