"""Looks at a job while its graphs run: ends it where the device may not train any more, or where it takes too much."""

import threading
from collections.abc import Callable
from types import TracebackType

from covey.device.runtime import RunStop, RunStoppedError
from covey.types.errors import OverBudgetError

__all__ = ["TrainingStopped", "Watch", "never", "over_budget", "resident_bytes"]

_LOOK_S = 0.25


class TrainingStopped(Exception):
    """Not a failure: a condition lapsed, or time is up. Nothing is kept."""


def never() -> bool:
    """Say that training need not stop."""
    return False


def resident_bytes() -> int:
    """Return how much memory this process has now."""
    import psutil  # here: it opens the door to sockets, which the pure modules keep shut

    return int(psutil.Process().memory_info().rss)


def over_budget(budget_bytes: int) -> OverBudgetError:
    """Return the error of a job that took more memory than its plan says."""
    return OverBudgetError(
        "training",
        expected=f"at most {budget_bytes} bytes of memory, as the plan says",
        got="more",
        hint="the plan's author has to raise budget.memory_bytes, or make batches smaller",
    )


class Watch:
    """Use as a context manager around a job. Between chunks :meth:`check` looks; while a graph runs, a thread does.

    Leaving the block turns a graph that was ended from beside into the reason for it.
    """

    def __init__(
        self,
        should_stop: Callable[[], bool],
        *,
        budget_bytes: int | None = None,
        resident: Callable[[], int] = resident_bytes,
    ) -> None:
        """Prepare.

        Args:
            should_stop: asked four times a second, from another thread too. Where it is :func:`never` and there is no
                budget, no thread is made.
            budget_bytes: by how much the process may grow meanwhile; None: it is not looked at.
            resident: returns the size of the process.

        Raises:
            TrainingStopped: by :meth:`check` and at the block's end.
            OverBudgetError: likewise.
        """
        self.stop = RunStop()
        self._should_stop, self._resident = should_stop, resident
        self._budget_bytes = budget_bytes
        self._start_bytes = resident() if budget_bytes is not None else 0
        self._reason: Exception | None = None
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        if should_stop is not never or budget_bytes is not None:
            self._thread = threading.Thread(target=self._look_on, daemon=True, name="covey-watch")

    def check(self) -> None:
        """Raise if the job has to end here."""
        if (reason := self._reason or self._found()) is not None:
            raise reason

    def __enter__(self) -> "Watch":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        if isinstance(error, RunStoppedError) and self._reason is not None:
            raise self._reason from None

    def _look_on(self) -> None:
        while not self._done.wait(_LOOK_S):
            try:
                self._reason = self._found()
            except Exception as failure:  # what cannot be asked does not allow
                self._reason = failure
            if self._reason is not None:
                self.stop.set()
                return

    def _found(self) -> Exception | None:
        if self._should_stop():
            return TrainingStopped()
        if self._budget_bytes is not None and self._resident() - self._start_bytes > self._budget_bytes:
            return over_budget(self._budget_bytes)
        return None
