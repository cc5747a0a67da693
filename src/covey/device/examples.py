"""The example store: what a person's own interaction leaves behind for training. It never leaves the device.

One SQLite file in write-ahead mode: an example is stored once its transaction is committed, and a process that is
killed loses nothing that was. A record is the example's fields side by side, sorted by name, each in C order and
little-endian; its layout is written down once, so that records of several layouts can lie in one collection.

Plans select examples with a :class:`covey.plans.manifest.Query`, which is data: its values travel to SQLite as
parameters, and its operators are looked up in a table.
"""

import itertools
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from covey.device.batches import checked_examples
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.types.errors import ExampleError, PlanFormatError, StorageError, StorageFullError
from covey.types.tensors import Array, Tensors

__all__ = ["ExampleStore"]

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE layouts (
    id INTEGER PRIMARY KEY,
    fields TEXT NOT NULL UNIQUE          -- JSON: [[name, dtype, shape], ...], sorted by name
);
CREATE TABLE examples (
    id INTEGER PRIMARY KEY,              -- grows: the order of arrival
    collection TEXT NOT NULL,
    split TEXT NOT NULL,
    layout INTEGER NOT NULL REFERENCES layouts (id),
    scalars TEXT NOT NULL,               -- JSON: the fields of shape [], which queries filter on
    record BLOB NOT NULL
);
CREATE INDEX examples_in_order ON examples (collection, split, id);
"""

_ORDERS: Mapping[str, str] = {"oldest": "ASC", "newest": "DESC"}
_OPERATORS: Mapping[str, str] = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_SPLITS = ("train", "test")
_ROWS_AT_ONCE = 64


class ExampleStore:
    """A store in one file. Safe to share between threads; several processes may open one file."""

    def __init__(self, path: Path, *, max_bytes: int | None = None) -> None:
        """Open the store, or make it.

        Args:
            path: the file; its directory must exist.
            max_bytes: how large the store may grow; None: as large as the disk allows.

        Raises:
            StorageError: the file cannot be opened, is no example store, or was written by a newer Covey.
        """
        self._lock = threading.RLock()
        self._where = f"example store {path.name}"
        with self._errors():
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            with self._errors():
                self._prepare(max_bytes)
        except BaseException:
            self._db.close()
            raise

    def add_many(self, collection: str, examples: Tensors, schema: ExampleSchema, *, split: str = "train") -> int:
        """Store examples, all of them or none; return how many.

        Args:
            collection: where plans will look for them.
            examples: for each field of the schema an array whose first dimension counts the examples.
            schema: the fields that are stored; others are left out.
            split: ``train`` or ``test``. What is held out for evaluation is never trained on.

        Raises:
            ExampleError: a field of another shape, dtype or range; nothing was stored.
            StorageFullError: no room; nothing was stored, and nothing stored before was lost.
        """
        if split not in _SPLITS:
            raise ExampleError("split", expected=" or ".join(_SPLITS), got=split[:20])
        fields = sorted(schema.fields, key=lambda f: f.name)
        columns = checked_examples(examples, fields, at_least=0)
        records = np.empty(len(next(iter(columns.values()))), _record_dtype(fields))
        for f in fields:
            records[f.name] = columns[f.name]
        scalars = [f for f in fields if f.shape == ()]
        with self._lock, self._errors(), self._transaction():
            layout = self._layout_id(fields)
            rows = ((collection, split, layout, *row) for row in _rows(records, scalars))
            self._db.executemany(
                "INSERT INTO examples (collection, split, layout, scalars, record) VALUES (?, ?, ?, ?, ?)", rows
            )
        return len(records)

    def query(self, schema: ExampleSchema, *, split: str | None = None, at_most: int | None = None) -> dict[str, Array]:
        """Return the examples that ``schema.query`` selects, for each field an array ``[n, ...]``; n may be 0.

        Args:
            schema: the fields to return, and the query.
            split: instead of the query's own.
            at_most: besides the query's own limit.

        Raises:
            ExampleError: a stored example lacks a field, or has it with another shape or dtype.
            PlanFormatError: a query that this version cannot run.
        """
        sql, values = _selection(schema.query, split, at_most)
        with self._lock, self._errors(), self._transaction():
            (count,) = self._db.execute(f"SELECT count(*) FROM ({sql})", values).fetchone()
            out = {f.name: np.empty((count, *f.shape), np.dtype(f.dtype)) for f in schema.fields}
            layouts = self._layouts()
            cursor = self._db.execute(sql, values)
            start = 0
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                start = _read_rows(rows, layouts, schema.fields, out, start)
        return dict(out)

    def count(self, collection: str, *, split: str | None = None) -> int:
        """Return how many examples a collection holds, in one split or in all."""
        sql = "SELECT count(*) FROM examples WHERE collection = ? AND (? IS NULL OR split = ?)"
        with self._lock, self._errors():
            (count,) = self._db.execute(sql, (collection, split, split)).fetchone()
        return int(count)

    def collections(self) -> dict[str, int]:
        """Return how many examples each collection holds."""
        with self._lock, self._errors():
            return dict(self._db.execute("SELECT collection, count(*) FROM examples GROUP BY collection ORDER BY 1"))

    def delete(self, collection: str, *, keep_newest: int = 0) -> int:
        """Delete a collection, but for the newest examples to keep; return how many went.

        Deleted content is overwritten with zeros in the file.
        """
        sql = """DELETE FROM examples WHERE collection = ? AND id NOT IN
                 (SELECT id FROM examples WHERE collection = ? ORDER BY id DESC LIMIT ?)"""
        with self._lock, self._errors(), self._transaction():
            return self._db.execute(sql, (collection, collection, keep_newest)).rowcount

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "ExampleStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _prepare(self, max_bytes: int | None) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # what is committed survives a power cut, too
        db.execute("PRAGMA secure_delete = ON")
        db.execute("PRAGMA cache_size = -512")  # 512 KiB: the device's memory belongs to training
        if max_bytes is not None:
            (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
            db.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")
        with self._transaction():
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise StorageError(
                    self._where, expected=f"schema {SCHEMA_VERSION}", got=str(version), hint="upgrade this device"
                )
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _layout_id(self, fields: Sequence[FieldSpec]) -> int:
        text = json.dumps([[f.name, f.dtype, list(f.shape)] for f in fields])
        self._db.execute("INSERT OR IGNORE INTO layouts (fields) VALUES (?)", (text,))
        (number,) = self._db.execute("SELECT id FROM layouts WHERE fields = ?", (text,)).fetchone()
        return int(number)

    def _layouts(self) -> dict[int, "np.dtype[np.void]"]:
        rows = self._db.execute("SELECT id, fields FROM layouts").fetchall()
        return {
            number: _record_dtype([FieldSpec(name=n, dtype=d, shape=tuple(s)) for n, d, s in json.loads(text)])
            for number, text in rows
        }

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled back already; rolling back twice would hide the first error.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            if getattr(e, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFullError(
                    self._where,
                    expected="room for more examples",
                    got="a full disk or store",
                    hint="nothing that was stored is lost; delete old examples or free some space",
                ) from e
            raise StorageError(self._where, expected="a working SQLite file", got=str(e)) from e


def _record_dtype(fields: Iterable[FieldSpec]) -> "np.dtype[np.void]":
    """Return the dtype of one record: the fields side by side, without padding."""
    return np.dtype([(f.name, np.dtype(f.dtype).newbyteorder("<"), f.shape) for f in fields])


def _rows(records: "NDArray[np.void]", scalars: Sequence[FieldSpec]) -> Iterator[tuple[str, bytes]]:
    """Yield for each record its scalars as JSON, for queries, and its bytes.

    Column by column where that is possible: a device that gathers for weeks stores a hundred thousand of these.
    """
    raw, size = records.tobytes(), records.dtype.itemsize
    names = [f.name for f in scalars]
    values = [records[n].tolist() for n in names]
    columns = zip(*values, strict=True) if values else itertools.repeat((), len(records))
    for i, row in enumerate(columns):
        # JSON has no NaN or infinity, and no query can ask for one: both are written as null.
        scalars_json = msgspec.json.encode(dict(zip(names, row, strict=True))).decode()
        yield scalars_json, raw[i * size : (i + 1) * size]


def _selection(query: Query, split: str | None, at_most: int | None) -> tuple[str, list[Any]]:
    """Return SQL and its parameters. Only keys of the tables above enter the text."""
    sql = "SELECT layout, record FROM examples WHERE collection = ? AND split = ?"
    values: list[Any] = [query.collection, split or query.split]
    for name, operator, value in query.where:
        if operator not in _OPERATORS or '"' in name or isinstance(value, str):
            expected = f"[field, one of {' '.join(_OPERATORS)}, a number]"
            raise PlanFormatError(
                "query: where", expected=expected, got=f"operator {operator[:10]!r}, {type(value).__name__}"
            )
        sql += f" AND json_extract(scalars, ?) {_OPERATORS[operator]} ?"
        values += [f'$."{name}"', value]
    if query.order not in _ORDERS:
        raise PlanFormatError("query: order", expected=" or ".join(_ORDERS), got=query.order[:20])
    limits = [n for n in (query.limit, at_most) if n is not None]
    return f"{sql} ORDER BY id {_ORDERS[query.order]} LIMIT ?", [*values, min(limits, default=-1)]


def _read_rows(
    rows: Sequence[tuple[int, bytes]],
    layouts: Mapping[int, "np.dtype[np.void]"],
    fields: Sequence[FieldSpec],
    out: Mapping[str, Array],
    start: int,
) -> int:
    """Copy records into the columns from row ``start`` on; return the row behind the last."""
    for layout in dict.fromkeys(number for number, _ in rows):
        places = [start + i for i, (number, _) in enumerate(rows) if number == layout]
        dtype = layouts[layout]
        joined = b"".join(record for number, record in rows if number == layout)
        if len(joined) != len(places) * dtype.itemsize:
            raise StorageError("example store", expected=f"records of {dtype.itemsize} bytes", got="another size")
        records: NDArray[np.void] = np.ndarray((len(places),), dtype, buffer=joined)
        for f in fields:
            _check_stored(dtype, f)
            out[f.name][places] = records[f.name]
    return start + len(rows)


def _check_stored(dtype: "np.dtype[np.void]", spec: FieldSpec) -> None:
    known: Mapping[str, Any] = dtype.fields or {}
    stored = known.get(spec.name)
    expected = f"{spec.dtype} {list(spec.shape)}"
    if stored is None:
        raise ExampleError(f"stored examples: field {spec.name!r}", expected=expected, got="no such field")
    base, shape = stored[0].subdtype or (stored[0], ())
    if base != np.dtype(spec.dtype) or shape != spec.shape:
        raise ExampleError(f"stored examples: field {spec.name!r}", expected=expected, got=f"{base.name} {list(shape)}")
