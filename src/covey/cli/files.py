"""Files that are named on the command line. A device needs these options, and none of those of a recipe."""

from pathlib import Path

import click

from covey.types.errors import UsageError

__all__ = ["file_path", "read_file"]

file_path = click.Path(dir_okay=False, path_type=Path)


def read_file(path: Path, what: str) -> bytes:
    """Return a file's bytes.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"{what} {path}", expected="a readable file", got=e.strerror or "an error") from e
