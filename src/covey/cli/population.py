"""``covey population``: a server's directory without a task yet, and a running population as it stands."""

from pathlib import Path
from typing import Any

import click

from covey.cli.admin import admin_options, connected
from covey.cli.options import file_path, read_file
from covey.cli.output import bytes_text, print_buffers, print_table, write_json

__all__ = ["command"]

_CONFIG = """\
# covey serve --dir {directory}
population = "{population}"
host = "{host}"
port = {port}            # 0 takes a free one
plan = ""               # tasks come by `covey task create`

[round]                 # what a task does not say for itself
goal = {goal}
"""


@click.group("population")
def command() -> None:
    """Begin a population without a task, and look at one that is served."""


@command.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--population", required=True, metavar="NAME", help="Its name: signatures are made for it.")
@click.option("--owner-key", required=True, type=file_path, help="The owner's public key, PEM.")
@click.option(
    "--checkpoint", required=True, type=file_path, help="The first parameters, as `covey plan build` writes them."
)
@click.option("--goal", type=int, default=100, show_default=True, help="Reports that close a round.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8443, show_default=True, help="Port; 0 takes a free one.")
def create(
    directory: Path, population: str, owner_key: Path, checkpoint: Path, goal: int, host: str, port: int
) -> None:
    """Make DIR for `covey serve`: no task yet, and nothing secret of the owner's.

    Use it where plans are signed on another machine; `covey init` makes everything at once, for a recipe.
    """
    from covey.device.files import storage_errors
    from covey.plans.signing import load_public_key, public_key_pem
    from covey.server.config import check_name
    from covey.types.errors import UsageError

    check_name("--population", population)
    key = load_public_key(read_file(owner_key, "--owner-key"), f"--owner-key {owner_key}")
    first = read_file(checkpoint, "--checkpoint")
    if (directory / "server.toml").exists():
        raise UsageError(f"directory {directory}", expected="a new one", got="one with a population in it")
    config = _CONFIG.format(directory=directory, population=population, host=host, port=port, goal=goal)
    with storage_errors(f"directory {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "owner.pub").write_bytes(public_key_pem(key))
        (directory / "checkpoint.bin").write_bytes(first)
        (directory / "server.toml").write_text(config)
    click.echo(f"population {population!r}, first checkpoint {bytes_text(len(first))}")
    click.echo(f"  covey serve --dir {directory}")
    click.echo(f"  covey task create TASK --plan PLAN --dir {directory}")


@command.command()
@admin_options
def show(as_json: bool, **where: Any) -> None:
    """Show where a population stands: its state, its model, its tasks."""
    with connected(**where) as client:
        found = client.details()
    if as_json:
        write_json(found, "-")
        return
    click.echo(f"population {found.population!r}: {found.state}, {found.waiting} devices wait")
    click.echo(
        f"  model: version {found.round}, checkpoint {found.checkpoint.sha256[:12]}, "
        f"{bytes_text(found.checkpoint.num_bytes)}; kept: {', '.join(map(str, found.versions)) or 'none'}"
    )
    if not found.tasks:
        click.echo("  no task yet: covey task create")
        return
    rows = [("task", "kind", "state", "rounds", "plan")]
    rows += [(t.task, t.kind, t.state, str(t.rounds), t.plan[:12]) for t in found.tasks]
    print_table(rows, right=(3,))
    print_buffers(found.tasks)
