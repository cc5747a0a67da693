"""A child process that ends with its parent, however the parent ends."""

import os
import signal
import threading

__all__ = ["terminate_with_stdin"]


def terminate_with_stdin() -> None:
    """Send this process SIGTERM when its stdin ends: the parent holds the other end, and kill -9 closes it too."""

    def wait() -> None:
        # Not sys.stdin: a thread that waits in a buffered read aborts the interpreter when that shuts down.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
