"""Give every device its examples and start it, beside what else happens."""

import threading
from collections.abc import Callable, Sequence

__all__ = ["NUM_GROUPS", "Filling"]

NUM_GROUPS = 4
"""How many processes of devices there are."""


class Filling:
    """A thread that fills devices group by group, and starts each group as soon as it is full."""

    def __init__(
        self, names: Sequence[str], fill: Callable[[str], None], launch: Callable[[int, list[str]], None]
    ) -> None:
        """Prepare; :meth:`start` begins.

        Args:
            names: the devices, in the order in which they are filled.
            fill: gives one device its examples.
            launch: starts a process of devices; gets its number, from 1, and their names.
        """
        size = -(-len(names) // NUM_GROUPS)
        self._groups = [list(names[i : i + size]) for i in range(0, len(names), size)]
        self._fill, self._launch = fill, launch
        self._error: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.done = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self) -> None:
        """Raise the error that ended the thread, if one did."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End after the device at hand; a group that is not full is not started."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            for number, group in enumerate(self._groups, start=1):
                for name in group:
                    if self._stopping.is_set():
                        return
                    self._fill(name)
                    self.done += 1
                self._launch(number, group)
        except BaseException as error:
            self._error = error
