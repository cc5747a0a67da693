"""A strict reader of protobuf bytes, for a device that has no protobuf library.

Encoding: protobuf.dev/programming-guides/encoding. Readers in the wild are lenient: they skip fields that they do not
know, let the last of several values win, and merge messages that come in pieces. This one refuses all of that, so that
what it saw is all that any reader can see.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from covey.types.errors import CoveyError, PlanFormatError

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Field", "Message", "Reader"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_WIDTHS = {FIXED64: 8, FIXED32: 4}

Value = int | memoryview


@dataclass(frozen=True, slots=True)
class Field:
    """A field that a message may hold: its name, wire type, and whether it may repeat."""

    name: str
    wire: int = BYTES
    many: bool = False


class Message:
    """The fields of one message by name; single-valued ones hold at most one value."""

    def __init__(self, values: Mapping[str, list[Value]], where: str) -> None:
        self._values = values
        self._where = where

    def numbers(self, name: str) -> list[int]:
        """Return all numbers of a varint field."""
        return [v for v in self._values.get(name, ()) if isinstance(v, int)]

    def number(self, name: str) -> int:
        """Return the number of a single-valued field; 0, protobuf's default, where it is absent."""
        return next(iter(self.numbers(name)), 0)

    def views(self, name: str) -> list[memoryview]:
        """Return the bytes of every value of a field."""
        return [v for v in self._values.get(name, ()) if isinstance(v, memoryview)]

    def text(self, name: str) -> str:
        """Return a single-valued text field; empty where it is absent.

        Raises:
            PlanFormatError: not UTF-8.
        """
        try:
            return "".join(str(v, "utf-8") for v in self.views(name))
        except UnicodeDecodeError as e:
            raise PlanFormatError(self._where, expected=f"{name} in UTF-8", got="other bytes") from e


class Reader:
    """Reads messages until ``max_fields`` values were seen in all: time and memory are bounded."""

    def __init__(self, max_fields: int) -> None:
        self._max_fields = max_fields
        self._num_fields = 0

    def message(
        self, data: memoryview, table: Mapping[int, Field], where: str, refuse: Callable[[int], CoveyError]
    ) -> Message:
        """Cut a message into its fields.

        Args:
            data: the whole message.
            table: the fields that it may hold, by number.
            where: for errors.
            refuse: makes the error for a field number that is not in the table.

        Raises:
            PlanFormatError: truncated, another wire type, a single-valued field twice, or too many fields.
        """
        values: dict[str, list[Value]] = {}
        for number, wire, value in _fields(data, where):
            entry = table.get(number)
            if entry is None:
                raise refuse(number)
            self._count(where)
            into = values.setdefault(entry.name, [])
            if isinstance(value, memoryview) and entry.many and wire == BYTES != entry.wire:
                self._packed(value, entry, into, where)
                continue
            if wire != entry.wire:
                raise PlanFormatError(where, expected=f"{entry.name} of wire type {entry.wire}", got=str(wire))
            if into and not entry.many:
                raise PlanFormatError(where, expected=f"one {entry.name}", got="several")
            into.append(value)
        return Message(values, where)

    def _packed(self, data: memoryview, entry: Field, into: list[Value], where: str) -> None:
        """Read a packed repeated field. Fixed-width numbers stay one view: nobody asks for their values."""
        if entry.wire != VARINT:
            if len(data) % _WIDTHS[entry.wire]:
                raise PlanFormatError(where, expected=f"{entry.name} in whole numbers", got="a broken one")
            into.append(data)
            return
        offset = 0
        while offset < len(data):
            self._count(where)
            value, offset = _varint(data, offset, where)
            into.append(value)

    def _count(self, where: str) -> None:
        self._num_fields += 1
        if self._num_fields > self._max_fields:
            raise PlanFormatError(where, expected=f"at most {self._max_fields} fields in all", got="more")


def _fields(data: memoryview, where: str) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield ``(field number, wire type, value)``; fixed-width values come as views."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset, where)
        number, wire = tag >> 3, tag & 7
        if not 1 <= number < 1 << 29:
            raise PlanFormatError(where, expected="a field number", got=str(number))
        if wire == VARINT:
            value, offset = _varint(data, offset, where)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, offset = _varint(data, offset, where)
        elif wire in _WIDTHS:
            length = _WIDTHS[wire]
        else:
            raise PlanFormatError(where, expected="protobuf wire type 0, 1, 2 or 5", got=str(wire))
        if not 0 <= length <= len(data) - offset:
            raise PlanFormatError(where, expected=f"{length} more bytes", got=f"{len(data) - offset}", hint="truncated")
        yield number, wire, data[offset : offset + length]
        offset += length


def _varint(data: memoryview, offset: int, where: str) -> tuple[int, int]:
    """Return a varint as a signed 64-bit number, and the offset behind it."""
    value = 0
    for i in range(10):
        if offset + i >= len(data):
            raise PlanFormatError(where, expected="a whole number", got="the end of the bytes", hint="truncated")
        byte = data[offset + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            value &= (1 << 64) - 1
            return value - (1 << 64) if value >> 63 else value, offset + i + 1
    raise PlanFormatError(where, expected="a number of at most 10 bytes", got="a longer one")
