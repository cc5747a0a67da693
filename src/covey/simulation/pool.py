"""Worker processes: each pinned to one thread, fed one message at a time, ended with certainty.

Workers are started as programs of their own with ``python -m``, not forked: the number of threads must stand in the
environment before NumPy, onnxruntime or XLA load, and a caller needs no ``if __name__ == "__main__"``.
"""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from covey.data.locate import cache_dir
from covey.simulation.messages import Crashed, Failed
from covey.types.errors import CoveyError, WorkerError

__all__ = ["WorkerPool", "available_cores"]

_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",  # how many threads XLA starts
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false"


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Some workers. Use as a context manager: at its end, whatever happened, no process is left.

    Answers come in any order; whoever needs an order sorts them.
    """

    def __init__(self, num_workers: int, setup: Any) -> None:
        """Start the workers and give them their set-up; :meth:`ready` waits for it."""
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
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
        return len(self._connections)

    def ready(self) -> None:
        """Wait until every worker has its set-up. Raises what went wrong in one."""
        for connection in self._connections:
            self._answer(connection)

    def everywhere(self, message: Any) -> list[Any]:
        """Send one message to every worker; return the answers in the workers' order."""
        for connection in self._connections:
            self._send(connection, message)
        return [self._answer(connection) for connection in self._connections]

    def scattered(self, messages: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Send each message to whichever worker is free, in order; yield (its index, the answer) as they come."""
        pending = iter(enumerate(messages))
        busy: dict[Connection, int] = {}

        def feed(connection: Connection) -> None:
            following = next(pending, None)
            if following is not None:
                busy[connection] = following[0]
                self._send(connection, following[1])

        for connection in self._connections:
            feed(connection)
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                answer, index = self._answer(ready), busy.pop(ready)
                feed(ready)
                yield index, answer

    def close(self) -> None:
        """End every worker: politely, then firmly."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.close()
        for process in self._processes:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._connections, self._processes = [], []

    def _start(self, setup: Any) -> None:
        ours, theirs = multiprocessing.Pipe()
        env = {**os.environ, **_ONE_THREAD}
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
        env.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir().with_name("xla")))
        env.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        env.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
        with contextlib.closing(theirs):
            process = subprocess.Popen(
                [sys.executable, "-m", "covey.simulation", str(theirs.fileno())],
                env=env,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is the parent's: a worker that starts does not know yet to ignore it
            )
        self._processes.append(process)
        self._connections.append(ours)
        self._send(ours, setup)

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except OSError as e:
            raise self._gone(connection) from e

    def _answer(self, connection: Connection) -> Any:
        try:
            answer = connection.recv()
        except (EOFError, OSError) as e:
            raise self._gone(connection) from e
        if isinstance(answer, Failed):
            raise answer.error
        if isinstance(answer, Crashed):
            raise RuntimeError(f"a worker failed:\n{answer.traceback}")
        return answer

    def _gone(self, connection: Connection) -> CoveyError:
        index = self._connections.index(connection)
        status = self._processes[index].wait()
        return WorkerError(
            f"worker {index + 1}",
            expected="a process that lives",
            got=f"one that ended with status {status}",
            hint="the system may have run out of memory: try --workers 1, or a smaller batch",
        )
