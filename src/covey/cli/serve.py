"""``covey serve``: one population's server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from covey.cli.output import bytes_text, percent

if TYPE_CHECKING:
    from covey.server.run import Listening
    from covey.wire.messages import RoundSummary

__all__ = ["command"]

_OWN_MACHINE = ("localhost", "127.0.0.1", "::1")


@click.command("serve")
@click.option(
    "--dir",
    "directory",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The server's directory, as `covey init` makes it.",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration; DIR/server.toml unless told.",
)
@click.option("--stop-with-stdin", is_flag=True, hidden=True, help="Stop when stdin ends: for a parent that may die.")
def command(directory: Path, config: Path | None, stop_with_stdin: bool) -> None:
    """Serve a population over HTTPS until Ctrl-C.

    A server that was stopped or killed resumes at the last committed round.
    """
    from covey.cli.pipes import terminate_with_stdin
    from covey.server.config import load_config
    from covey.server.run import serve

    if stop_with_stdin:
        terminate_with_stdin()
    loaded = load_config(config or directory / "server.toml")
    if loaded.enrolment == "open" and loaded.host not in _OWN_MACHINE:
        click.echo(
            "covey: note: enrolment is open: whoever reaches this server may take part, as often as they like\n"
            '  hint  enrolment = "token" in the configuration admits devices of your application only',
            err=True,
        )
    serve(directory, loaded, _print_ready, _print_round)


def _print_ready(listening: "Listening") -> None:
    click.echo(f"serving population {listening.population!r} on {listening.url}, round {listening.round}")
    for text in listening.resting:
        click.echo(f"  {text}; covey task show says more")


def _print_round(summary: "RoundSummary") -> None:
    evaluates = summary.kind == "evaluate"
    text = f"{summary.task} " if evaluates else ""
    text += f"round {summary.round} {summary.status.replace('_', ' ')}"
    if summary.reason:
        text += f" ({summary.reason})"
    if "correct" in summary.metrics:
        text += (
            f", {percent(summary.metrics['correct'])} right {'on held-out examples' if evaluates else 'while training'}"
        )
    click.echo(
        f"{text}: {summary.reported}/{summary.selected} reported, up {bytes_text(summary.bytes_up)}, "
        f"down {bytes_text(summary.bytes_down)}, {summary.seconds:.2f} s"
    )
