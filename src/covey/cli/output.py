"""What commands print: errors, tables, a line of progress, and JSON."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from covey.device.files import storage_errors
from covey.device.statement import bytes_text
from covey.types.errors import CoveyError

if TYPE_CHECKING:
    from covey.privacy.guarantee import Guarantee
    from covey.wire.administration import TaskStatus

__all__ = [
    "StatusLine",
    "bytes_text",
    "percent",
    "print_buffers",
    "print_error",
    "print_guarantee",
    "print_table",
    "write_file",
    "write_json",
]


def print_error(error: CoveyError) -> None:
    """Print an error on stderr: where, expected, got, hint, and its code for looking it up."""
    lines = [f"covey: error: {error.where}", f"  expected  {error.expected}", f"  got       {error.got}"]
    if error.hint:
        lines.append(f"  hint      {error.hint}")
    lines.append(f"  code      {error.code} (docs/errors.md)")
    print("\n".join(lines), file=sys.stderr)


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with one decimal, or a dash."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print aligned columns; those in ``right`` are aligned right."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        click.echo("  " + "  ".join(cells).rstrip())


def print_buffers(tasks: "Sequence[TaskStatus]") -> None:
    """Print how far the buffers of asynchronous tasks are."""
    for task in tasks:
        if (buffer := task.buffer) is not None:
            click.echo(
                f"    {task.task}: {buffer.updates} of {task.settings['round']['goal']} updates in the buffer, mean "
                f"staleness {buffer.staleness:.2f}; {buffer.devices} devices train"
            )


def print_guarantee(guarantee: "Guarantee") -> None:
    """Print what differential privacy promises, with every assumption."""
    click.echo(f"privacy: {guarantee.headline}")
    for line in guarantee.assumptions:
        click.echo(f"  {line}")


def write_json(value: Any, target: str) -> None:
    """Write one JSON object to a file, or to stdout where ``target`` is ``-``.

    Raises:
        StorageFullError, StorageError: the file cannot be written.
    """
    data = msgspec.json.format(msgspec.json.encode(value), indent=2)
    if target == "-":
        click.echo(data.decode())
        return
    write_file(Path(target), data + b"\n", f"--json {target}")


def write_file(path: Path, data: bytes, where: str = "") -> None:
    """Write a file whole, or leave what was there: a full disk costs nobody the file that they had.

    Raises:
        StorageFullError: no room.
        StorageError: it cannot be written.
    """
    with storage_errors(where or f"file {path}"):
        if path.exists() and not path.is_file():  # a pipe, or a terminal
            path.write_bytes(data)
            return
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


class StatusLine:
    """One line on the terminal that is overwritten; nothing where stderr is not a terminal."""

    def __init__(self) -> None:
        self._shown = False
        self._terminal = sys.stderr.isatty()

    def bar(self, label: str, done: int, total: int) -> None:
        """Show a progress bar."""
        width = 24
        filled = width * done // max(total, 1)
        self.show(f"{label} [{'#' * filled}{'.' * (width - filled)}] {done}/{total}")

    def show(self, text: str) -> None:
        """Show a text in place of the former one."""
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def clear(self) -> None:
        """Remove the line, so that ordinary output can follow."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False
