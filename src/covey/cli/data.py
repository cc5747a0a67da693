"""``covey data``: what data sets there are, and how to get them."""

import click

from covey.cli.output import StatusLine, bytes_text, print_table

__all__ = ["command"]


@click.group("data")
def command() -> None:
    """Fetch and list data sets."""


@command.command("list")
def list_() -> None:
    """List the data sets that recipes use."""
    from covey.data.registry import DATASETS

    print_table([(name, about) for name, about in DATASETS.items()])


@command.command()
@click.argument("dataset")
def fetch(dataset: str) -> None:
    """Download a data set into the cache, and check it.

    Data sets are looked for in the folder that COVEY_DATA names, then in the cache.
    """
    from covey.data.download import fetch as fetch_files

    if dataset == "shakespeare":
        click.echo("shakespeare is part of Covey: there is nothing to fetch")
        return
    status = StatusLine()

    def show(name: str, done: int, total: int) -> None:
        status.show(f"{name}: {bytes_text(done)}" + (f" of {bytes_text(total)}" if total else ""))

    paths = fetch_files(dataset, on_progress=show)
    status.clear()
    for path in paths:
        click.echo(path)
