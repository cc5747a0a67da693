"""``covey device ledger``, ``status``, ``pause``, ``refuse``, ``forget`` and their kin: the owner's say."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.files import file_path
from covey.cli.joining import default_home
from covey.cli.output import print_table
from covey.device.statement import bytes_text, choices_text, time_text

if TYPE_CHECKING:
    from covey.device.consent import Overview, Owner
    from covey.device.statement import SessionRecord

__all__ = ["commands"]

_home = click.option(
    "--home", default=default_home, type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="State directory of the device; the user's data directory unless told.",
)  # fmt: skip
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@_home
@click.option("--json", "as_json", is_flag=True, help="Print every entry as a JSON object on a line of its own.")
@click.option("--verify", is_flag=True, help="Check the chain from the first entry on; exit with 1 if it breaks.")
@click.option("--file", "file", type=file_path, metavar="FILE", help="A ledger that was moved aside, instead.")
@click.option(
    "--last", type=click.IntRange(min=1), metavar="N", help="Only the last N sessions, or entries with --json."
)
def ledger(home: Path, as_json: bool, verify: bool, file: Path | None, last: int | None) -> None:
    """Show what left this device: for whom, how many bytes, under which protection."""
    import msgspec

    from covey.device.ledger import Ledger
    from covey.device.statement import acts, sessions

    read = Ledger(file) if file is not None else _owner(home).ledger
    if verify:
        chain = read.verify()
        click.echo(f"the chain holds: {chain.num_entries} entries, head {chain.head}")
        if chain.torn_bytes:
            click.echo(f"{chain.torn_bytes} bytes behind it were cut short by a crash; the next entry removes them")
        return
    if as_json:
        for entry in read.entries(newest=last):
            click.echo(msgspec.json.encode(entry).decode())
        return
    entries = list(read.entries())
    found = sessions(entries)
    if not found:
        click.echo("nothing has left this device")
    for record in found[-last:] if last else found:
        _print_session(record)
    for act in acts(entries):
        click.echo(f"{time_text(act.at_s)}  {act.text}" + (f": {act.detail}" if act.detail else ""))


@click.command()
@_home
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(home: Path, as_json: bool) -> None:
    """Show what this device does now, what it holds, and what left it in all."""
    owner = _owner(home)
    overview = owner.overview()
    if as_json:
        from covey.cli.output import write_json

        write_json(_as_json(overview), "-")
        return
    click.echo("an agent is running" if overview.is_running else "no agent is running")
    click.echo(choices_text(overview.chosen, owner.clock()))
    if overview.chosen and overview.chosen.refused:
        click.echo(f"refused: {', '.join(sorted(overview.chosen.refused))}")
    if overview.joined:
        click.echo(f"joined: {', '.join(overview.joined)}")
    if overview.collections:
        click.echo(f"examples ({bytes_text(overview.store_bytes)}{', encrypted' if overview.is_encrypted else ''}):")
        rows = [(c.name, f"{c.num_examples:,}", f"since {time_text(c.oldest_at_s)}") for c in overview.collections]
        print_table(rows, right=[1])
    else:
        click.echo("no examples")
    if overview.totals:
        heads = ("population", "sessions", "counted", "down", "up", "last")
        rows_of_totals = [
            (t.population, str(t.num_sessions), str(t.num_counted), bytes_text(t.bytes_down), bytes_text(t.bytes_up),
             time_text(t.last.entry.at_s) if t.last else "-")
            for t in overview.totals
        ]  # fmt: skip
        print_table([heads, *rows_of_totals], right=[1, 2, 3, 4])
    else:
        click.echo("nothing has left this device")
    if overview.chain is not None:
        click.echo(f"ledger: {overview.chain.num_entries} entries, the chain holds")
    for problem in overview.problems:
        click.echo(f"problem: {problem}", err=True)


@click.command()
@_home
@click.option("--for", "duration", metavar="TIME", help="For example 30m, 2h, 1d; until `resume` unless told.")
def pause(home: Path, duration: str | None) -> None:
    """Train nothing; a session under way ends within a second."""
    for_s = float("inf") if duration is None else _seconds(duration)
    owner = _owner(home)
    owner.pause(for_s)
    click.echo(choices_text(owner.choices.read(), owner.clock()))


@click.command()
@_home
def resume(home: Path) -> None:
    """End a pause."""
    owner = _owner(home)
    owner.resume()
    refused = sorted(owner.choices.read().refused)
    click.echo("resumed" + (f"; still refused: {', '.join(refused)}" if refused else ""))


@click.command()
@_home
@click.argument("population")
def refuse(home: Path, population: str) -> None:
    """Take no part in a population; a session with it under way ends within a second."""
    _owner(home).refuse(population)
    click.echo(f"refused: {population}")


@click.command()
@_home
@click.argument("population")
def accept(home: Path, population: str) -> None:
    """Take part in a population again."""
    _owner(home).accept(population)
    click.echo(f"accepted: {population}")


@click.command()
@_home
@click.option("--examples", is_flag=True, help="All examples, and the personal models trained on them.")
@click.option("--collection", metavar="C", help="The examples of one collection.")
@click.option("--population", metavar="P", help="What the device has of a population; it is refused from then on.")
@click.option("--everything", is_flag=True, help="All of it; the device is paused from then on.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(
    home: Path, examples: bool, collection: str | None, population: str | None, everything: bool, yes: bool
) -> None:
    """Delete from this device, so that nothing of it remains in its files.

    What has left already cannot be called back: sums hold it among the updates of others. The ledger stays, because it
    is the record of exactly that.
    """
    from covey.types.errors import UsageError

    if sum((examples, collection is not None, population is not None, everything)) != 1:
        raise UsageError(
            "covey device forget",
            expected="one of --examples, --collection C, --population P, --everything",
            got="none" if not (examples or everything) else "several",
        )
    owner = _owner(home)
    what = (
        "everything but the ledger and your choices" if everything
        else "all examples" if examples
        else f"the examples of collection {collection!r}" if collection is not None
        else f"credential, plan and models of population {population!r}"
    )  # fmt: skip
    if not yes:
        click.confirm(f"Delete {what}?", abort=True, err=True)
    _forget(owner, collection, population, everything)
    click.echo("what stays: the ledger, the record of what left; your choices (paused, refused)")


@click.command()
@_home
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="On 127.0.0.1; 0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open it in the browser, too.")
def page(home: Path, port: int, open_browser: bool) -> None:
    """Show ledger, state and the buttons in a browser on this computer, until Ctrl-C.

    The address that is printed holds a random token: whoever has it, and an account on this computer, can use the page.
    """
    from covey.device.page import OwnerPage
    from covey.types.errors import PortInUseError

    try:
        served = OwnerPage(_owner(home), port=port)
    except OSError as e:
        raise PortInUseError(f"port {port}", expected="a free port", got=e.strerror or "an error") from e
    with served:
        click.echo(served.url)
        if open_browser:
            click.launch(served.url)
        served.serve()


def _forget(owner: "Owner", collection: str | None, population: str | None, everything: bool) -> None:
    if everything:
        click.echo(f"deleted: {owner.forget_everything():,} examples, credentials, plans, models. The device is paused")
    elif population is not None:
        owner.forget_population(population)
        click.echo(f"deleted: credential, plan and models of {population}. It is refused from now on")
    else:
        click.echo(f"deleted: {owner.forget_examples(collection):,} examples, and the models trained on them here")


def _print_session(record: "SessionRecord") -> None:
    e = record.entry
    task = f"/{e.task}" if e.task else ""
    click.echo(f"{time_text(record.began_at_s)}  {e.population}{task}, round {e.round}")
    rows = [
        ("plan", e.summary or (f"{e.plan[:12]}…" if e.plan else "-")),
        ("examples used", f"{e.num_examples:,}"),
        ("down, up", f"{bytes_text(e.bytes_down)}, {bytes_text(record.bytes_up)}"),
        ("protection", record.protection),
        ("outcome", record.outcome),
    ]
    print_table(rows)


def _as_json(overview: "Overview") -> dict[str, Any]:
    chosen = overview.chosen
    forever = chosen is not None and chosen.paused_until_s == float("inf")
    return {
        "running": overview.is_running,
        "paused_until_s": None if chosen is None or forever else chosen.paused_until_s,
        "paused_until_resumed": forever,
        "choices_readable": chosen is not None,
        "joined": overview.joined,
        "refused": sorted(chosen.refused) if chosen else [],
        "examples": {c.name: c.num_examples for c in overview.collections},
        "store_bytes": overview.store_bytes,
        "encrypted": overview.is_encrypted,
        "populations": {
            t.population: {
                "sessions": t.num_sessions,
                "counted": t.num_counted,
                "bytes_down": t.bytes_down,
                "bytes_up": t.bytes_up,
            }
            for t in overview.totals
        },
        "ledger_entries": overview.chain.num_entries if overview.chain else None,
        "ledger_head": overview.chain.head if overview.chain else None,
        "problems": overview.problems,
    }


def _owner(home: Path) -> "Owner":
    from covey.device.consent import Owner

    return Owner(home)


def _seconds(text: str) -> float:
    from covey.types.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip().lower())
    if match is None or not float(match[1]) > 0:
        raise UsageError("--for", expected="a time such as 30m, 2h or 1d", got=text[:20])
    return float(match[1]) * _UNITS[match[2]]


commands = (ledger, status, pause, resume, refuse, accept, forget, page)
"""What ``covey device`` takes in."""
