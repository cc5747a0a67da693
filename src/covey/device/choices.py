"""What the person decided: whether anything is trained now, and which populations are refused.

One small JSON file. It is read anew whenever it is asked, so that a choice takes effect in a running agent before its
next chunk of training. A file that cannot be read allows nothing: what the person wanted is not known.
"""

import math
from collections.abc import Callable
from pathlib import Path

import msgspec

from covey.device.files import file_lock, set_aside, storage_errors, written_whole
from covey.types.errors import StorageError

__all__ = ["Choices", "Chosen"]


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The choices.

    Attributes:
        paused_until_s: nothing is trained before, in seconds since the Unix epoch; infinity: until resumed.
        refused: populations that the person wants no part in.
    """

    paused_until_s: float = 0.0
    refused: frozenset[str] = frozenset()

    def allows(self, population: str, now_s: float) -> bool:
        """Say whether a device may take part in ``population`` now."""
        return now_s >= self.paused_until_s and population not in self.refused


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """As it is written: JSON has no infinity, so a pause without an end is null."""

    paused_until_s: float | None = 0.0
    refused: list[str] = []


class Choices:
    """The choices in one file. Safe to share between threads; several processes may use one file."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made by the first choice."""
        self.path = path

    @classmethod
    def of_home(cls, home: Path) -> "Choices":
        """Return the choices of a device's state directory, whether or not an agent has it open."""
        return cls(home / "choices.json")

    def read(self) -> Chosen:
        """Return the choices; those of a person who chose nothing if there is no file.

        Raises:
            StorageError: the file cannot be read, or holds something else.
        """
        where = f"choices {self.path.name}"
        with storage_errors(where):
            try:
                stored = msgspec.json.decode(self.path.read_bytes(), type=_File)
            except FileNotFoundError:
                return Chosen()
            except (msgspec.MsgspecError, UnicodeDecodeError) as e:
                raise StorageError(
                    where,
                    expected="the choices that Covey wrote",
                    got="something else",
                    hint="nothing is trained meanwhile; `covey device resume` moves the file aside and starts afresh",
                ) from e
        until_s = math.inf if stored.paused_until_s is None else stored.paused_until_s
        return Chosen(paused_until_s=until_s, refused=frozenset(stored.refused))

    def allows(self, population: str, now_s: float) -> bool:
        """Say whether a device may take part in ``population`` now; False if the choices cannot be read."""
        try:
            return self.read().allows(population, now_s)
        except StorageError:
            return False

    def pause(self, until_s: float = math.inf) -> None:
        """Train nothing before ``until_s``; infinity: until resumed.

        Raises:
            StorageError, StorageFullError: nothing was changed. So for every choice.
        """
        self._change(lambda c: msgspec.structs.replace(c, paused_until_s=until_s))

    def resume(self) -> None:
        """End a pause."""
        self._change(lambda c: msgspec.structs.replace(c, paused_until_s=0.0))

    def refuse(self, population: str) -> None:
        """Take no part in a population."""
        self._change(lambda c: msgspec.structs.replace(c, refused=c.refused | {population}))

    def accept(self, population: str) -> None:
        """Take part in a population again."""
        self._change(lambda c: msgspec.structs.replace(c, refused=c.refused - {population}))

    def _change(self, change: Callable[[Chosen], Chosen]) -> None:
        with file_lock(self.path.with_name(f"{self.path.name}.lock")):
            try:
                before = self.read()
            except StorageError:
                if not self.path.is_file():
                    raise
                set_aside(self.path)
                before = Chosen()
            after = change(before)
            until_s = None if after.paused_until_s == math.inf else after.paused_until_s
            stored = _File(paused_until_s=until_s, refused=sorted(after.refused))
            with storage_errors(f"choices {self.path.name}"), written_whole(self.path) as file:
                file.write(msgspec.json.encode(stored))
