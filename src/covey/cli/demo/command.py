"""``covey demo``: a server and some devices, in processes of their own, learn a keyboard from Shakespeare's roles.

Everything goes over HTTPS with TLS 1.3 on loopback. Each device has a state directory and a credential of its own and
holds only its own role's lines. What is printed about the model is measured with the plan's own graphs on held-out
lines, of which no device trained on any.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from covey.cli.options import json_option
from covey.device.files import storage_errors
from covey.types.errors import UsageError

if TYPE_CHECKING:
    from covey.cli.demo.federation import Demo

__all__ = ["command"]

_LEAST_DEVICES = 8


@click.command("demo")
@click.option("--rounds", type=int, default=60, show_default=True, metavar="N", help="Rounds to train.")
@click.option("--devices", type=int, default=24, show_default=True, metavar="N", help="Devices, one role each.")
@click.option("--no-prompt", is_flag=True, help="End without asking for words to complete.")
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Keep everything here: server, devices, logs.")  # fmt: skip
@click.option("--plain", is_flag=True, help="Without secure aggregation.")
@json_option
def command(
    rounds: int, devices: int, no_prompt: bool, directory: Path | None, plain: bool, json_file: str | None
) -> None:
    """Run a real federation on this machine, and compare what it learnt.

    A server and some devices, in several processes, learn next-character suggestions from Shakespeare. At the end: how
    good the model is beside the best constant guess, models trained on each device alone, and one trained on all the
    lines in one place; then try it yourself.
    """
    from covey.cli.demo.federation import Demo
    from covey.cli.output import write_json

    if rounds < 1:
        raise UsageError("--rounds", expected="at least 1", got=str(rounds))
    if devices < _LEAST_DEVICES:
        raise UsageError("--devices", expected=f"at least {_LEAST_DEVICES}: a round sums that many", got=str(devices))
    quiet = json_file == "-"
    with _directory(directory) as folder:
        with Demo(folder, num_rounds=rounds, num_devices=devices, secure=not plain, quiet=quiet) as demo:
            report = demo.run()
        if json_file:
            write_json(report, json_file)
        if not (no_prompt or quiet):
            _prompt(demo)


def _prompt(demo: "Demo") -> None:
    """Ask for words until an empty line or the end of input."""
    from covey.recipes.typing import suggest

    click.echo("\nType the beginning of a line; the model on the devices suggests how it goes on. An empty line ends.")
    while True:
        try:
            text = input("> ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        except EOFError:
            return
        if not text:
            return
        found = suggest(lambda inputs: demo.evaluator.predict(demo.params, inputs), text)
        click.echo("  " + "   ".join(text.rpartition(" ")[2] + tail for tail in found))


@contextlib.contextmanager
def _directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        with storage_errors(f"--dir {given}"):
            given.mkdir(parents=True, exist_ok=True)
            if any(given.iterdir()):
                raise UsageError("--dir", expected="a new or empty directory", got=str(given))
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="covey-demo-", ignore_cleanup_errors=True) as made:
        yield Path(made)
