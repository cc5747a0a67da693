"""Shakespeare by speaking role: every role of the 37 plays is one device that holds only its own lines.

The set is part of the package: the text is in the public domain (the Moby Lexical Tools edition). The first 80 % of a
role's lines train, the last 20 % test, as in 1602.05629, section 3; roles with fewer than two lines are left out, which
leaves 1,256.
"""

import functools
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey.data.dataset import Examples, pooled, unknown_client
from covey.types.errors import UsageError

__all__ = [
    "START",
    "VOCABULARY",
    "CharVocabulary",
    "Role",
    "Shakespeare",
    "lines_as_sequences",
    "lines_as_windows",
    "roles",
]

PAD, START, UNKNOWN = 0, 1, 2
_FIRST = 3
TRAIN_FRACTION = 0.8


@dataclass(frozen=True, slots=True)
class CharVocabulary:
    """Characters as numbers: 0 pads (and predicts nothing), 1 starts a line, 2 is any other character."""

    characters: str

    @property
    def size(self) -> int:
        """Number of symbols."""
        return _FIRST + len(self.characters)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return one number for each character."""
        numbers = {c: i for i, c in enumerate(self.characters, _FIRST)}
        return np.array([numbers.get(c, UNKNOWN) for c in text], np.int32)

    def decode(self, symbols: Sequence[int]) -> str:
        """Return the text; padding and starts give nothing, the unknown gives U+FFFD."""
        special = {PAD: "", START: "", UNKNOWN: "\ufffd"}
        return "".join(
            special.get(int(s)) or (self.characters[int(s) - _FIRST] if s >= _FIRST else "") for s in symbols
        )


VOCABULARY = CharVocabulary("\n !$&',-.234568:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz")
"""The end of a line, and the 71 characters of the plays."""


@dataclass(frozen=True, slots=True)
class Role:
    """One speaking role: ``client`` is ``play/role``; lines in the order of the play."""

    client: str
    lines: tuple[str, ...]

    @property
    def train_lines(self) -> tuple[str, ...]:
        """The first 80 %, at least one."""
        return self.lines[: self._cut]

    @property
    def test_lines(self) -> tuple[str, ...]:
        """The last 20 %, at least one."""
        return self.lines[self._cut :]

    @property
    def _cut(self) -> int:
        return min(max(1, int(TRAIN_FRACTION * len(self.lines))), len(self.lines) - 1)


@functools.cache
def roles(min_lines: int = 2) -> tuple[Role, ...]:
    """Return every role with at least ``min_lines`` lines, in the order of the plays."""
    data = resources.files("covey.data").joinpath("shakespeare_roles.jsonl.gz").read_bytes()
    found = []
    for text in gzip.decompress(data).decode().splitlines():
        record: dict[str, Any] = json.loads(text)
        lines = tuple(line for speech in record["speeches"] for line in speech if line)
        if len(lines) >= max(2, min_lines):
            found.append(Role(f"{record['play']}/{record['role']}", lines))
    return tuple(found)


def lines_as_windows(lines: Sequence[str], context: int) -> Examples:
    """Return one example for every character: the ``context`` symbols before it, and the character.

    ``x``: int32 [n, context], padded with 0 on the left of the line's start; ``y``: int32 [n]. The end of a line is
    predicted too, as a newline.
    """
    texts = [np.concatenate([[START], VOCABULARY.encode(line + "\n")]).astype(np.int32) for line in lines]
    xs, ys = [np.empty((0, context), np.int32)], [np.empty(0, np.int32)]
    for symbols in texts:
        padded = np.concatenate([np.full(context - 1, PAD, np.int32), symbols])
        windows = np.lib.stride_tricks.sliding_window_view(padded, context)
        xs.append(windows[:-1])
        ys.append(symbols[1:])
    return {"x": np.concatenate(xs), "y": np.concatenate(ys)}


def lines_as_sequences(lines: Sequence[str], length: int) -> Examples:
    """Return the role's text, lines joined by newlines, in pieces of ``length`` characters.

    ``x``: int32 [n, length], ``y``: int32 [n, length], the next character at every place; the last piece is padded
    with 0, where nothing is predicted. As 1602.05629 does with an unroll length of 80.
    """
    text = VOCABULARY.encode("\n".join(lines) + "\n") if lines else np.empty(0, np.int32)
    count = -(-len(text) // length)
    targets = np.zeros(count * length, np.int32)
    targets[: len(text)] = text
    inputs = np.concatenate([[START], targets[:-1]]) if count else targets
    inputs = np.where(targets == PAD, PAD, inputs)
    return {
        "x": inputs.reshape(count, length).astype(np.int32),
        "y": targets.reshape(count, length),
    }


class Shakespeare:
    """The roles as a federated data set; see :mod:`covey.data.dataset`."""

    name = "shakespeare"

    def __init__(
        self, *, form: str = "sequences", length: int = 80, min_lines: int = 2, num_clients: int | None = None
    ) -> None:
        """Choose the form of examples.

        Args:
            form: ``sequences`` (:func:`lines_as_sequences`) or ``windows`` (:func:`lines_as_windows`).
            length: of a sequence, or of a window's context.
            min_lines: leave out roles with fewer lines.
            num_clients: only the roles with the most lines; None: all.

        Raises:
            UsageError: another form, or more clients than there are.
        """
        if form not in ("sequences", "windows"):
            raise UsageError("form", expected="sequences or windows", got=form)
        chosen = roles(min_lines)
        if num_clients is not None:
            if not 1 <= num_clients <= len(chosen):
                raise UsageError("number of devices", expected=f"1 to {len(chosen)} roles", got=str(num_clients))
            chosen = tuple(sorted(chosen, key=lambda r: (-len(r.lines), r.client))[:num_clients])
        self._roles = {r.client: r for r in chosen}
        self._encode = lines_as_sequences if form == "sequences" else lines_as_windows
        self._length = length
        self._form = form
        self._pooled: Examples | None = None
        self.client_ids: Sequence[str] = tuple(self._roles)

    def num_examples(self, client: str) -> int:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        characters = sum(len(line) + 1 for line in self.role(client).train_lines)
        return characters if self._form == "windows" else -(-characters // self._length)

    def train(self, client: str) -> Examples:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        return self._encode(self.role(client).train_lines, self._length)

    def test(self, client: str) -> Examples:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        return self._encode(self.role(client).test_lines, self._length)

    def pooled_test(self) -> Examples:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        if self._pooled is None:
            self._pooled = pooled([self.test(c) for c in self.client_ids])
        return self._pooled

    def role(self, client: str) -> Role:
        """Return a role. Raises NotFoundError."""
        if client not in self._roles:
            raise unknown_client(self.name, len(self._roles))
        return self._roles[client]
