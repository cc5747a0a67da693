"""How examples lie in the store: a record is an example's fields side by side, sorted by name, little-endian.

A layout (the fields' names, dtypes and shapes) is written down once, so that records of several layouts can lie in one
collection.
"""

import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey.plans.manifest import FieldSpec, Query
from covey.types.errors import ExampleError, PlanFormatError, StorageError
from covey.types.tensors import Array, Tensors

__all__ = [
    "OPERATORS",
    "Columns",
    "Layouts",
    "check_finite",
    "encoded_rows",
    "fields_from_text",
    "fields_text",
    "one_example",
    "selection",
]

Layouts: TypeAlias = "Mapping[int, np.dtype[np.void]]"
"""The dtype of a record by the number of its layout."""

OPERATORS: Mapping[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "==": ("=", operator.eq),
    "!=": ("<>", operator.ne),
    "<": ("<", operator.lt),
    "<=": ("<=", operator.le),
    ">": (">", operator.gt),
    ">=": (">=", operator.ge),
}
"""The operators of a query: in SQL, and in NumPy."""

_ORDERS: Mapping[str, str] = {"oldest": "ASC", "newest": "DESC"}
_ROWS_AT_ONCE = 4096


def fields_text(fields: Sequence[FieldSpec]) -> str:
    """Return the one text of a layout."""
    return json.dumps([[f.name, f.dtype, list(f.shape)] for f in fields])


def fields_from_text(text: str) -> "np.dtype[np.void]":
    """Return the dtype of a record of the layout that :func:`fields_text` wrote down."""
    return _record_dtype([FieldSpec(name=n, dtype=d, shape=tuple(s)) for n, d, s in json.loads(text)])


def one_example(example: Mapping[str, Any], fields: Sequence[FieldSpec]) -> dict[str, Array]:
    """Return one example as arrays with a first dimension of 1.

    Numbers and lists become the field's dtype where that loses nothing but a float's precision; an array must have it
    already.

    Raises:
        ExampleError: a field that is missing, of another shape, or that the dtype cannot hold.
    """
    out = {}
    for f in fields:
        wanted = f"{f.dtype} {list(f.shape)}"
        where = f"example: field {f.name!r}"
        if f.name not in example:
            raise ExampleError(where, expected=wanted, got="no such field")
        given, target = example[f.name], np.dtype(f.dtype)
        try:
            value = np.asarray(given)
        except ValueError as e:
            raise ExampleError(where, expected=wanted, got="a list of unequal lists") from e
        got = f"{value.dtype.name} {list(value.shape)}"
        if value.dtype != target:
            if isinstance(given, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
                raise ExampleError(where, expected=wanted, got=got)
            with np.errstate(over="ignore", invalid="ignore"):
                converted = value.astype(target)
            if target.kind != "f" and not np.array_equal(converted, value):
                raise ExampleError(where, expected=wanted, got="a number that it cannot hold")
            value = converted
        if value.shape != f.shape:
            raise ExampleError(where, expected=wanted, got=got)
        out[f.name] = value[None]
    return out


def encoded_rows(columns: Tensors, fields: Sequence[FieldSpec]) -> Iterator[tuple[str, bytes]]:
    """Yield for each example its scalars as JSON, which queries filter on, and its record.

    Column by column where that is possible, a few thousand rows at a time: a device that gathers for weeks stores a
    hundred thousand of these.
    """
    dtype, scalars = _record_dtype(fields), [f for f in fields if f.shape == ()]
    names = [f.name for f in scalars]
    count = len(next(iter(columns.values())))
    for start in range(0, count, _ROWS_AT_ONCE):
        part = {k: v[start : start + _ROWS_AT_ONCE] for k, v in columns.items()}
        records = np.empty(min(_ROWS_AT_ONCE, count - start), dtype)
        for f in fields:
            records[f.name] = part[f.name]
        raw, size = records.tobytes(), dtype.itemsize
        values = [records[n].tolist() for n in names]
        rows = zip(*values, strict=True) if values else itertools.repeat((), len(records))
        for i, row in enumerate(rows):
            scalars_json = msgspec.json.encode(dict(zip(names, row, strict=True))).decode()
            yield scalars_json, raw[i * size : (i + 1) * size]


def check_finite(columns: Tensors) -> None:
    """Refuse a NaN or an infinity: it would make every later training fail.

    Raises:
        ExampleError: names the field.
    """
    for name, values in columns.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ExampleError(f"examples: field {name!r}", expected="finite values", got="a NaN or an infinity")


def selection(query: Query, split: str, limit: int | None, *, sealed: bool) -> tuple[str, list[Any]]:
    """Return the SQL of a query and its parameters: only keys of the tables above enter the text.

    Where records are ``sealed``, SQL cannot see the fields, and :class:`Columns` filters.

    Raises:
        PlanFormatError: a query that this version cannot run; names the part.
    """
    sql = "SELECT layout, record FROM examples WHERE collection = ? AND split = ?"
    values: list[Any] = [query.collection, split]
    for name, symbol, value in query.where:
        if symbol not in OPERATORS or '"' in name or isinstance(value, str):
            raise PlanFormatError(
                "query: where",
                expected=f"[field, one of {' '.join(OPERATORS)}, a number]",
                got=f"operator {symbol[:10]!r}, {type(value).__name__}",
            )
        if not sealed:
            sql += f" AND json_extract(scalars, ?) {OPERATORS[symbol][0]} ?"
            values += [f'$."{name}"', value]
    if query.order not in _ORDERS:
        raise PlanFormatError("query: order", expected=" or ".join(_ORDERS), got=query.order[:20])
    return f"{sql} ORDER BY id {_ORDERS[query.order]} LIMIT ?", [*values, -1 if limit is None else limit]


class Columns:
    """Rows of the store on their way to one array for each field of a plan."""

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        layouts: Layouts,
        capacity: int,
        where: Sequence[tuple[str, str, str | int | float | bool]] = (),
    ) -> None:
        """Make room.

        Args:
            fields: what is asked for.
            layouts: the store's.
            capacity: the most rows that will be taken.
            where: a checked filter that the data base could not apply, because it cannot read the records.
        """
        self._fields, self._layouts, self._where = fields, layouts, where
        self._arrays = {f.name: np.empty((capacity, *f.shape), np.dtype(f.dtype)) for f in fields}
        self._count = 0

    def take(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Take rows in their order: number of the layout, and record.

        Raises:
            ExampleError: a record lacks a field, or has it with another shape or dtype.
            StorageError: a record of another size than its layout says.
        """
        parts = [(layout, list(group)) for layout, group in itertools.groupby(rows, key=lambda r: r[0])]
        for layout, group in parts:
            dtype = self._layouts[layout]
            joined = b"".join(record for _, record in group)
            if len(joined) != len(group) * dtype.itemsize:
                raise StorageError("example store", expected=f"records of {dtype.itemsize} bytes", got="another size")
            records: NDArray[np.void] = np.ndarray((len(group),), dtype, buffer=joined)
            records = records[_matching(records, self._where)] if self._where else records
            for f in self._fields:
                _check_stored(dtype, f)
                self._arrays[f.name][self._count : self._count + len(records)] = records[f.name]
            self._count += len(records)

    def arrays(self, limit: int | None = None) -> dict[str, Array]:
        """Return what was taken, at most ``limit`` rows of it."""
        count = self._count if limit is None else min(limit, self._count)
        return {name: values[:count] for name, values in self._arrays.items()}


def _matching(
    records: "NDArray[np.void]", where: Sequence[tuple[str, str, str | int | float | bool]]
) -> NDArray[np.bool_]:
    keep = np.ones(len(records), np.bool_)
    for name, symbol, value in where:
        known: Mapping[str, Any] = records.dtype.fields or {}
        if name not in known or records.dtype[name].shape != ():
            return np.zeros(len(records), np.bool_)  # as in SQL: what is not there matches nothing
        keep &= OPERATORS[symbol][1](records[name], value)
    return keep


def _record_dtype(fields: Iterable[FieldSpec]) -> "np.dtype[np.void]":
    """Return the dtype of one record: the fields side by side, without padding."""
    return np.dtype([(f.name, np.dtype(f.dtype).newbyteorder("<"), f.shape) for f in fields])


def _check_stored(dtype: "np.dtype[np.void]", spec: FieldSpec) -> None:
    known: Mapping[str, Any] = dtype.fields or {}
    stored = known.get(spec.name)
    expected = f"{spec.dtype} {list(spec.shape)}"
    if stored is None:
        raise ExampleError(f"stored examples: field {spec.name!r}", expected=expected, got="no such field")
    base, shape = stored[0].subdtype or (stored[0], ())
    if base != np.dtype(spec.dtype) or shape != spec.shape:
        raise ExampleError(f"stored examples: field {spec.name!r}", expected=expected, got=f"{base.name} {list(shape)}")
