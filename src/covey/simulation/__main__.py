"""A worker process: ``python -m covey.simulation PIPE MEMORY`` answers one message at a time on that channel."""

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

from covey.simulation.channel import Channel
from covey.simulation.messages import Crashed, Failed, Setup
from covey.simulation.worker import Worker
from covey.types.errors import CoveyError


def main() -> None:
    """Serve the channel whose two file descriptors are the arguments, until the other side closes it."""
    # Ctrl-C reaches the whole process group; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe, memory = map(int, sys.argv[1:])
    channel = Channel(Connection(pipe), memory, is_worker=True)
    os.close(memory)
    worker: Worker | None = None
    while True:
        try:
            message = channel.recv()
        except (EOFError, OSError):  # the second where it left an answer unread
            return
        try:
            if isinstance(message, Setup):
                worker, answer = Worker(message), None
            else:
                assert worker is not None, "the set-up comes first"
                answer = worker.receive(message)
        except CoveyError as error:
            answer = Failed(error)
        except Exception:
            answer = Crashed(traceback.format_exc())
        try:
            channel.send(answer)
        except OSError:
            return


if __name__ == "__main__":
    main()
