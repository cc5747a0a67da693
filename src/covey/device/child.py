"""Train in a child process, which inherits nothing but the job and gives all of its memory back.

It is ended at once when it may not train any more, or takes too much.

``python -m covey.device.child`` reads a job from stdin and writes the result to stdout, each with its length before it
(8 bytes, little-endian). Nothing that it says is executed: results are plain numbers and arrays.
"""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

import msgspec
import numpy as np
import psutil

from covey.device.trainer import LocalResult, OnnxTrainer, TrainingJob, TrainingStopped, never
from covey.device.watch import over_budget
from covey.plans.plan import pack_plan, unpack_plan
from covey.types.errors import CoveyError, WorkerError, all_errors
from covey.types.tensors import Tensors

__all__ = ["ChildTrainer", "main"]

_LOOK_S = 0.1
_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")
"""What a child needs of the environment to find Python and its libraries."""

_READY = b"ready"


class _Array(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Job(msgspec.Struct, frozen=True):
    plan: bytes
    phase: int
    params: dict[str, _Array]
    shared: dict[str, _Array]
    hyper: dict[str, float]
    seed: bytes
    kept: dict[str, _Array]
    personal: dict[str, _Array]
    examples: dict[str, _Array]


class _Failure(msgspec.Struct, frozen=True):
    code: str
    where: str
    expected: str
    got: str
    hint: str


class _Answer(msgspec.Struct, frozen=True):
    failure: _Failure | None = None
    segments: dict[str, _Array] = {}
    weight: float = 0.0
    metrics: dict[str, float] = {}
    num_examples: int = 0
    num_steps: int = 0
    kept: dict[str, _Array] = {}


class ChildTrainer:
    """Implements :class:`covey.device.trainer.Trainer`: one child for each job."""

    def __init__(self, *, resident: Callable[[int], int] | None = None) -> None:
        """Prepare; ``resident`` returns the size of a process by its id, for tests."""
        self._resident = resident or _resident_bytes

    def run(self, job: TrainingJob, examples: Tensors, should_stop: Callable[[], bool] = never) -> LocalResult:
        """Train; see :meth:`covey.device.trainer.OnnxTrainer.run`.

        Raises:
            OverBudgetError: the child grew by more than the plan's memory budget, and was ended.
            WorkerError: the child ended by itself: the operating system took it, or the runtime crashed.
        """
        data = msgspec.msgpack.encode(
            _Job(
                plan=pack_plan(job.plan.manifest, job.plan.graphs),
                phase=job.phase,
                params=_packed(job.params),
                shared=_packed(job.shared),
                hyper=dict(job.hyper),
                seed=job.seed,
                kept=_packed(job.kept),
                personal=_packed(job.personal),
                examples=_packed(examples),
            )
        )
        environment = {k: v for k, v in os.environ.items() if k in _KEPT} | {"OMP_NUM_THREADS": "1"}
        child = subprocess.Popen(
            [sys.executable, "-m", "covey.device.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            return _unpacked(self._looked_after(child, data, job.plan.manifest.budget.memory_bytes, should_stop))
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):  # a pipe whose reader is gone
                    pipe.close()  # type: ignore[union-attr]

    def _looked_after(
        self, child: "subprocess.Popen[bytes]", data: bytes, budget_bytes: int, should_stop: Callable[[], bool]
    ) -> bytes:
        """Talk to the child in a thread, and meanwhile look at it; return what it answered."""
        answers: queue.Queue[bytes] = queue.Queue()
        thread = threading.Thread(target=_talk, args=(child.stdin, child.stdout, data, answers), daemon=True)
        thread.start()
        start_bytes: int | None = None
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    answer = answers.get(timeout=_LOOK_S)
                    if answer != _READY:
                        break
                    start_bytes = self._resident(child.pid)
                if should_stop():
                    raise TrainingStopped
                if start_bytes is not None and self._resident(child.pid) - start_bytes > budget_bytes:
                    raise over_budget(budget_bytes)
        finally:
            child.kill()
            thread.join()
        if not answer:
            raise WorkerError(
                "training process", expected="a result", got=f"its end ({child.wait()})",
                hint="the operating system may have had too little memory, or the runtime has a defect",
            )  # fmt: skip
        return answer


def main() -> None:
    """Be the child."""
    from covey.device.priority import give_way

    give_way()
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not leave examples on the disk
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints does not get in between
    _send(sink, _READY)
    job = msgspec.msgpack.decode(_receive(source), type=_Job)
    threading.Thread(target=_end_with, args=(source,), daemon=True).start()
    try:
        result = OnnxTrainer().run(
            TrainingJob(
                unpack_plan(job.plan),
                job.phase,
                _arrays(job.params),
                _arrays(job.shared),
                job.hyper,
                job.seed,
                kept=_arrays(job.kept),
                personal=_arrays(job.personal),
            ),
            _arrays(job.examples),
        )
    except CoveyError as e:
        answer = _Answer(failure=_Failure(e.code, e.where, e.expected, e.got, e.hint))
    else:
        answer = _Answer(
            segments=_packed(result.segments),
            weight=result.weight,
            metrics=result.metrics,
            num_examples=result.num_examples,
            num_steps=result.num_steps,
            kept=_packed(result.kept),
        )
    _send(sink, msgspec.msgpack.encode(answer))


def _end_with(source: IO[bytes]) -> None:
    """End when stdin does: the parent is gone, however it went."""
    source.read()
    os._exit(1)


def _talk(sink: IO[bytes], source: IO[bytes], data: bytes, answers: "queue.Queue[bytes]") -> None:
    """Hand over the job and take the answer; an empty one says that the child is gone."""
    try:
        answers.put(_receive(source))
        _send(sink, data)
        answers.put(_receive(source))
    except (OSError, EOFError, ValueError):
        answers.put(b"")


def _send(sink: IO[bytes], data: bytes) -> None:
    sink.write(len(data).to_bytes(8, "little"))
    sink.write(data)
    sink.flush()


def _receive(source: IO[bytes]) -> bytes:
    size = int.from_bytes(_exactly(source, 8), "little")
    return _exactly(source, size)


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _packed(tensors: "Tensors | dict[str, Any]") -> dict[str, _Array]:
    return {
        k: _Array(np.asarray(v).dtype.str, np.asarray(v).shape, np.asarray(v).tobytes()) for k, v in tensors.items()
    }


def _arrays(packed: dict[str, _Array]) -> dict[str, Any]:
    return {k: np.frombuffer(a.data, np.dtype(a.dtype)).reshape(a.shape).copy() for k, a in packed.items()}


def _unpacked(data: bytes) -> LocalResult:
    try:
        answer = msgspec.msgpack.decode(data, type=_Answer)
        segments, kept = _arrays(answer.segments), _arrays(answer.kept)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError) as e:
        raise WorkerError("training process", expected="a result", got="something else") from e
    if (f := answer.failure) is not None:
        raise all_errors().get(f.code, CoveyError)(f.where, expected=f.expected, got=f.got, hint=f.hint)
    return LocalResult(segments, answer.weight, answer.metrics, answer.num_examples, answer.num_steps, kept)


if __name__ == "__main__":
    main()
