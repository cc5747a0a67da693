"""``covey``: finds the command, runs it, and turns every failure into a message that says what to do."""

import contextlib
import errno
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

import click

from covey import __version__
from covey.cli.output import print_error
from covey.types.errors import CoveyError

__all__ = ["main"]

_COMMANDS: Mapping[str, str] = {
    "demo": "covey.cli.demo.command",
    "simulate": "covey.cli.simulate",
    "compare": "covey.cli.compare",
    "sweep": "covey.cli.sweep",
    "init": "covey.cli.init",
    "serve": "covey.cli.serve",
    "population": "covey.cli.population",
    "task": "covey.cli.task",
    "device": "covey.cli.device",
    "authority": "covey.cli.authority",
    "attest": "covey.cli.attest",
    "plan": "covey.cli.plan",
    "release": "covey.cli.release",
    "data": "covey.cli.data",
    "secagg": "covey.cli.secagg",
    "privacy": "covey.cli.privacy",
    "compression": "covey.cli.compression",
}
"""In the order in which a newcomer meets them."""

_EXTRAS = {
    "jax": "train",
    "jaxlib": "train",
    "onnx": "train",
    "optax": "train",
    "starlette": "server",
    "uvicorn": "server",
    "PIL": "images",
    "dp_accounting": "privacy",
    "constriction": "entropy",
    "matplotlib": "report",
    "safetensors": "export",
    "prometheus_client": "server",
}

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM


class _Commands(click.Group):
    """Imports a command's module when it is needed: ``covey device`` must not pay for, or need, the server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Begin with `covey demo`: a server and two dozen devices on this machine learn a keyboard together.",
)
@click.version_option(__version__, message="covey %(version)s")
def cli() -> None:
    """Cross-device federated learning: devices train a shared model; the data stay where they are."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 2 for what was typed, 1 for a failure, 130 after Ctrl-C, 143 after SIGTERM."""
    with _cleaning_up_on_sigterm() as terminated:
        status = _run(args)
    sys.exit(_TERMINATED if terminated else status)


@contextlib.contextmanager
def _cleaning_up_on_sigterm() -> Iterator[list[int]]:
    """Let SIGTERM unwind like Ctrl-C, so that children end and temporary files go; yields what came.

    A command with handlers of its own (``serve``, ``device run``) puts them in place of this one.
    """
    terminated: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield terminated
        return
    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(args: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=args, prog_name="covey", standalone_mode=False)
    except click.exceptions.Abort:
        print("\ncovey: stopped", file=sys.stderr)
        return _INTERRUPTED
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except CoveyError as e:
        print_error(e)
        return e.exit_code
    except KeyboardInterrupt:
        print("\ncovey: stopped", file=sys.stderr)
        return _INTERRUPTED
    except ModuleNotFoundError as e:
        extra = _EXTRAS.get((e.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"covey: error: this needs {e.name}, which is not installed\n  hint  pip install 'covey[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`| head`): nothing to say, and nobody to say it to
        return 1
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"covey: error: {e.filename or 'a file'}: cannot be written: {e.strerror}", file=sys.stderr)
        return 1
    return result if isinstance(result, int) else 0
