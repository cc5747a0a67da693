"""``covey task``: what a population trains and evaluates, and when: create, look, pause, resume, cancel, roll back."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.admin import admin_options, connected
from covey.cli.options import file_path, read_file
from covey.cli.output import print_buffers, print_table, write_json
from covey.types.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from covey.wire.administration import TaskStatus

__all__ = ["command"]

_NAME = click.argument("name", metavar="TASK")
_ENDED = 10


@click.group("task")
def command() -> None:
    """Create, list, pause, resume, cancel and roll back the tasks of a running server."""


@command.command()
@_NAME
@click.option("--plan", required=True, type=file_path, help="The plan's archive, as `covey plan build` writes it.")
@click.option("--signature", type=file_path, help="The owner's signature over it; PLAN.sig unless told.")
@click.option("--kind", type=click.Choice(["train", "evaluate"]), default="train", show_default=True)
@click.option("--goal", type=int, metavar="M", help="Reports that close a round; the server's own unless told.")
@click.option("--rounds", "max_rounds", type=int, default=0, metavar="R", help="Complete after so many; 0: never.")
@click.option("--every", type=int, metavar="N", help="Of an evaluation: due again after N versions of the model; 1.")
@click.option("--checkpoint", default="", metavar="SHA256", help="What an evaluation reads; the newest unless told.")
@click.option("--start-at", metavar="TIME", help="Not before this time, as 2026-01-31T08:00.")
@click.option("--until", metavar="TIME", help="Complete at this time.")
@click.option("--hyper", multiple=True, metavar="NAME=X", help="A per-round value for the devices; repeat it.")
@click.option(
    "--set", "values", multiple=True, metavar="KEY=X", help="Another key of [round], as pause_s=60; repeat it."
)
@admin_options
def create(
    name: str,
    plan: Path,
    signature: Path | None,
    kind: str,
    goal: int | None,
    max_rounds: int,
    every: int | None,
    checkpoint: str,
    start_at: str | None,
    until: str | None,
    hyper: tuple[str, ...],
    values: tuple[str, ...],
    as_json: bool,
    **where: Any,
) -> None:
    """Send a signed plan to the server and create a task of it."""
    from covey.wire.administration import TaskStatus, TaskWanted
    from covey.wire.messages import BlobRef

    rounds = {**_pairs("--set", values), "max_rounds": max_rounds, "hyper": _pairs("--hyper", hyper)}
    if goal is not None:
        rounds["goal"] = goal
    settings: dict[str, Any] = {"round": rounds}
    settings |= {"every": every} if every is not None else {}
    for key, text in (("start_at", start_at), ("until", until)):
        if text is not None:
            settings[key] = _seconds(f"--{key.replace('_', '-')}", text)
    data = read_file(plan, "--plan")
    signed = (
        read_file(signature or plan.with_name(plan.name + ".sig"), "--signature").decode("ascii", "replace").strip()
    )
    with connected(**where) as client:
        stored = client.post("/plans", data, BlobRef, signature=signed)
        wanted = TaskWanted(
            task=name, kind=kind, plan=stored.sha256, signature=signed, settings=settings, checkpoint=checkpoint
        )
        _show([client.post("/tasks", wanted, TaskStatus)], as_json, alone=True)


@command.command("list")
@admin_options
@click.option("--all", "everything", is_flag=True, help=f"Not only the last {_ENDED} of those that are over.")
def list_tasks(as_json: bool, everything: bool, **where: Any) -> None:
    """Show the tasks and where they stand: each candidate for a release is measured by one of its own."""
    with connected(**where) as client:
        tasks = list(client.details().tasks)
    over = [t for t in tasks if t.state in ("completed", "cancelled")]
    hidden = set() if everything or as_json else {t.task for t in over[:-_ENDED]}
    _show([t for t in tasks if t.task not in hidden], as_json)
    if hidden:
        click.echo(f"{len(hidden)} more are over; --all shows them")


@command.command()
@_NAME
@admin_options
def show(name: str, as_json: bool, **where: Any) -> None:
    """Show one task with its settings."""
    with connected(**where) as client:
        found = [t for t in client.details().tasks if t.task == name]
        if not found:
            raise NotFoundError("task", expected="a task of this population", got=repr(name), hint="covey task list")
        _show(found, as_json, alone=True)


@command.command()
@_NAME
@admin_options
def pause(name: str, as_json: bool, **where: Any) -> None:
    """Begin no more rounds; one whose devices train already is let end, and a buffer is set aside."""
    _change(name, "pause", as_json, where)


@command.command()
@_NAME
@admin_options
def resume(name: str, as_json: bool, **where: Any) -> None:
    """Go on with a paused task, or start one before its time."""
    _change(name, "resume", as_json, where)


@command.command()
@_NAME
@admin_options
def cancel(name: str, as_json: bool, **where: Any) -> None:
    """End a task for good; its round, if one is under way, is abandoned."""
    _change(name, "cancel", as_json, where)


@command.command()
@_NAME
@click.option("--to", "number", type=int, required=True, metavar="ROUND", help="A version of `covey population show`.")
@admin_options
def rollback(name: str, number: int, as_json: bool, **where: Any) -> None:
    """Make an earlier version of the model the newest, under the next number; training goes on from there."""
    _change(name, "rollback", as_json, where, number)


def _change(name: str, action: str, as_json: bool, where: dict[str, Any], number: int = 0) -> None:
    from urllib.parse import quote

    from covey.wire.administration import TaskChange, TaskStatus

    with connected(**where) as client:
        change = TaskChange(action=action, round=number)
        _show([client.post(f"/tasks/{quote(name, safe='')}", change, TaskStatus)], as_json, alone=True)


def _show(tasks: "list[TaskStatus]", as_json: bool, *, alone: bool = False) -> None:
    if as_json:
        write_json(tasks[0] if alone else tasks, "-")
        return
    rows = [("task", "kind", "state", "rounds", "mode", "min cohort", "plan")]
    rows += [(t.task, t.kind, t.state, _rounds(t), t.mode, str(t.min_cohort), t.plan[:12]) for t in tasks]
    print_table(rows, right=(3, 5))
    print_buffers(tasks)
    if alone:
        for key, value in _flat(tasks[0].settings).items():
            click.echo(f"    {key} = {value}")
        if tasks[0].checkpoint:
            click.echo(f"    reads checkpoint {tasks[0].checkpoint}")


def _rounds(task: "TaskStatus") -> str:
    most = task.settings["round"]["max_rounds"]
    return f"{task.rounds}/{most}" if most else str(task.rounds)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    out = {f"round.{k}": v for k, v in settings["round"].items()}
    for key, value in settings.items():
        if key in ("start_at", "until"):
            out[key] = datetime.fromtimestamp(value).isoformat(" ") if value else "-"
        elif key != "round":
            out[key] = value
    return out


def _pairs(option: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    out = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            out[key] = json.loads(text)
        except ValueError as e:
            raise UsageError(option, expected="NAME=NUMBER", got=pair) from e
    return out


def _seconds(option: str, text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as e:
        raise UsageError(option, expected="a time as 2026-01-31T08:00", got=text) from e
