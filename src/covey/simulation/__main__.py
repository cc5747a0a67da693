"""A worker process: ``python -m covey.simulation FD`` answers one message at a time on that connection."""

import signal
import sys
import traceback
from multiprocessing.connection import Connection

from covey.simulation.messages import Crashed, Failed, Setup
from covey.simulation.worker import Worker
from covey.types.errors import CoveyError


def main() -> None:
    """Serve the connection whose file descriptor is the one argument, until the other side closes it."""
    # Ctrl-C reaches the whole process group; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    worker: Worker | None = None
    while True:
        try:
            message = connection.recv()
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
            connection.send(answer)
        except OSError:
            return


if __name__ == "__main__":
    main()
