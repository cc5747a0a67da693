"""A child process that ends with its parent, however the parent ends."""

import os
import signal
import sys
import threading

__all__ = ["terminate_with_stdin"]


def terminate_with_stdin() -> None:
    """Send this process SIGTERM when its stdin ends: the parent holds the other end, and kill -9 closes it too."""

    def wait() -> None:
        while sys.stdin.buffer.read(1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
