"""The example store: what a person's own interaction leaves behind for training. It never leaves the device.

One SQLite file in write-ahead mode: an example is stored once its transaction is committed, and a process that is
killed loses nothing that was. Any number of processes may add and query at the same time. How records lie in the file
is :mod:`covey.device.records`; how they are encrypted, if they are, :mod:`covey.device.sealing`.

Plans select examples with a :class:`covey.plans.manifest.Query`, which is data: its values travel to SQLite as
parameters, and its operators are looked up in a table.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from covey.device.batches import checked_examples
from covey.device.records import (
    Columns,
    check_finite,
    encoded_rows,
    fields_from_text,
    fields_text,
    one_example,
    selection,
)
from covey.device.sealing import KeySource, Sealer, SystemKeyring, new_key
from covey.device.store_file import StoreFile
from covey.plans.manifest import ExampleSchema, FieldSpec
from covey.types.errors import (
    ExampleError,
    MissingExtraError,
    StorageFullError,
    StoreCorruptError,
    StoreSealedError,
)
from covey.types.tensors import Array, Tensors

__all__ = ["Collection", "ExampleStore"]

_SPLITS = ("train", "test")
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Collection:
    """What a store holds under one name: how many examples, bytes of records, and when the first and last came."""

    name: str
    num_examples: int
    num_bytes: int
    oldest_at_s: float
    newest_at_s: float


class ExampleStore:
    """A store in one file. Safe to share between threads; several processes may open one file."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int | None = None,
        keep_s: float | None = None,
        encrypt: bool = False,
        keys: KeySource | None = None,
        clock: Callable[[], float] = time.time,
        quarantine: bool = False,
    ) -> None:
        """Open the store, or make it.

        ``max_bytes`` and ``keep_s`` are written into the store and hold for every process until one sets others; an
        encrypted store stays encrypted, whether or not ``encrypt`` is said again.

        Args:
            path: the file; its directory must exist.
            max_bytes: how large the file may grow: then the oldest examples make room. None: as before; at first as
                large as the disk allows.
            keep_s: how long an example is kept. None: as before; at first for ever.
            encrypt: seal every record under a key from ``keys``.
            keys: where the key is kept; None: the system's keyring.
            clock: gives seconds since the Unix epoch.
            quarantine: move a damaged file aside and begin anew; as :meth:`of_home` does.

        Raises:
            StoreSealedError: ``encrypt``, and the store was made without, or no key can be kept.
            StoreCorruptError: the file is damaged, or no example store.
            StorageError: it cannot be opened, or was written by a newer Covey.
        """
        self._clock, self._keys = clock, keys or SystemKeyring()
        self._sealers: dict[str, Sealer] = {}
        self._file = StoreFile(path, quarantine=quarantine, now_s=clock())
        try:
            try:
                self._settle(max_bytes, keep_s, encrypt)
            except StoreCorruptError:
                if not quarantine:
                    raise
                self._settle(max_bytes, keep_s, encrypt)  # in the new file: the damaged one was moved aside
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def of_home(cls, home: Path, **options: Any) -> "ExampleStore":
        """Open the store of a device's state directory, whether or not an agent has it open.

        A damaged store is moved aside (``quarantined`` names the file) and an empty one takes its place.
        """
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(home / "examples.db", quarantine=True, **options)

    @property
    def quarantined(self) -> Path | None:
        """The damaged file that was moved aside, if one was."""
        return self._file.quarantined

    @property
    def is_encrypted(self) -> bool:
        """Whether records are sealed."""
        return self._setting("encrypted") is not None

    def declare(self, schema: ExampleSchema) -> None:
        """Say what an example of ``schema.query.collection`` looks like, for :meth:`add`; again if it changes.

        Examples that were stored before keep their fields. A plan that asks for others says so.
        """
        text = msgspec.json.encode(schema).decode()
        with self._file.transaction() as db:
            db.execute("INSERT OR REPLACE INTO declared VALUES (?, ?)", (schema.query.collection, text))

    def add(self, collection: str, example: Mapping[str, Any], *, split: str = "train") -> None:
        """Store one example, from any process.

        Args:
            collection: declared with :meth:`declare`, by this process or another.
            example: a value for each field of the schema: numbers, lists, or arrays of the field's dtype.
            split: ``train`` or ``test``.

        Raises:
            ExampleError: a collection that nobody declared, or a value that does not fit; nothing was stored.
            StorageFullError: no room, and the store has no limit within which old examples could make some.
        """
        with self._file.transaction("DEFERRED") as db:
            row = db.execute("SELECT schema FROM declared WHERE collection = ?", (collection,)).fetchone()
        if row is None:
            raise ExampleError(
                f"collection {collection!r}", expected="one that was declared", got="none", hint="store.declare(schema)"
            )
        schema = msgspec.json.decode(row[0], type=ExampleSchema)
        self.add_many(collection, one_example(example, schema.fields), schema, split=split)

    def add_many(self, collection: str, examples: Tensors, schema: ExampleSchema, *, split: str = "train") -> int:
        """Store examples, all of them or none; return how many.

        Args:
            collection: where plans will look for them.
            examples: for each field of the schema an array whose first dimension counts the examples.
            schema: the fields that are stored; others are left out.
            split: ``train`` or ``test``. What is held out for evaluation is never trained on.

        Raises:
            ExampleError: a field of another shape, dtype or range, or not finite; nothing was stored.
            StorageFullError: no room, even without every older example; nothing was stored, and nothing deleted.
        """
        if split not in _SPLITS:
            raise ExampleError("split", expected=" or ".join(_SPLITS), got=split[:20])
        fields = sorted(schema.fields, key=lambda f: f.name)
        columns = checked_examples(examples, fields, at_least=0)
        count = len(next(iter(columns.values())))
        self._check_room(count, sum(v.nbytes for v in columns.values()))
        check_finite(columns)
        self.expire()
        num_evicted = 0
        while True:
            try:
                gone = self._insert(collection, split, columns, fields, num_evicted)
                break
            except StorageFullError:
                # The oldest make room, in ever larger steps: each try is one transaction, so a failure costs nothing.
                # A sixteenth at least, so that not every example from now on has to drive out one.
                total = self._total()
                if self._setting("max_bytes") is None or num_evicted >= total:
                    raise
                num_evicted = max(1, count, total // 16, 2 * num_evicted)
        if gone:
            self._file.scrub(patiently=False)
        return count

    def query(self, schema: ExampleSchema, *, split: str | None = None, at_most: int | None = None) -> dict[str, Array]:
        """Return the examples that ``schema.query`` selects, for each field an array ``[n, ...]``; n may be 0.

        The same store gives the same examples in the same order.

        Args:
            schema: the fields to return, and the query.
            split: instead of the query's own.
            at_most: besides the query's own limit.

        Raises:
            ExampleError: a stored example lacks a field, or has it with another shape or dtype.
            PlanFormatError: a query that this version cannot run.
            StoreSealedError: the store is encrypted and its key is not there.
        """
        self.expire()
        query, sealed = schema.query, self.is_encrypted
        limit = min((n for n in (query.limit, at_most) if n is not None), default=None)
        # SQLite cannot look into sealed records: there the filter, and then the limit, are applied here.
        filtered_here = sealed and bool(query.where)
        sql, values = selection(query, split or query.split, None if filtered_here else limit, sealed=sealed)
        with self._file.transaction("DEFERRED") as db:
            (count,) = db.execute(f"SELECT count(*) FROM ({sql})", values).fetchone()
            layouts = {n: fields_from_text(text) for n, text in db.execute("SELECT id, fields FROM layouts")}
            columns = Columns(schema.fields, layouts, count, query.where if filtered_here else ())
            sealer = self._sealer(db) if sealed and count else None
            cursor = db.execute(sql, values)
            while rows := cursor.fetchmany(_ROWS_AT_ONCE):
                if sealer is not None:
                    rows = [(n, sealer.open(r, _context(query.collection, split or query.split, n))) for n, r in rows]
                columns.take(rows)
        return columns.arrays(limit)

    def count(self, collection: str, *, split: str | None = None) -> int:
        """Return how many examples a collection holds, in one split or in all."""
        sql = "SELECT count(*) FROM examples WHERE collection = ? AND (? IS NULL OR split = ?)"
        with self._file.transaction("DEFERRED") as db:
            (count,) = db.execute(sql, (collection, split, split)).fetchone()
        return int(count)

    def collections(self) -> dict[str, int]:
        """Return how many examples each collection holds."""
        return {c.name: c.num_examples for c in self.contents()}

    def contents(self) -> list[Collection]:
        """Return what the store holds, by collection."""
        sql = """SELECT collection, count(*), sum(length(record)), min(at_s), max(at_s) FROM examples
                 GROUP BY collection ORDER BY 1"""
        with self._file.transaction("DEFERRED") as db:
            return [Collection(*row) for row in db.execute(sql)]

    def delete(self, collection: str, *, keep_newest: int = 0) -> int:
        """Delete a collection, but for the newest examples to keep; return how many went.

        Deleted content is overwritten with zeros, and nothing of it remains in the files of the store. What the disk
        itself keeps of overwritten blocks is beyond a program's reach: encryption at rest is against that.

        Raises:
            StorageError: another process went on reading; the examples are deleted, their bytes not yet gone.
        """
        sql = """DELETE FROM examples WHERE collection = ? AND id NOT IN
                 (SELECT id FROM examples WHERE collection = ? ORDER BY id DESC LIMIT ?)"""
        with self._file.transaction() as db:
            count = db.execute(sql, (collection, collection, keep_newest)).rowcount
        self._file.scrub(patiently=True)
        return count

    def delete_all(self) -> int:
        """Delete every example, declaration and the key; return how many examples went. As :meth:`delete`.

        It needs no key. An encrypted store takes a new key with its next example.
        """
        with self._file.transaction() as db:
            key = _setting(db, "key")
            count = db.execute("DELETE FROM examples").rowcount
            for table in ("declared", "layouts", "settings WHERE name = 'key'"):
                db.execute(f"DELETE FROM {table}")
        self._file.scrub(patiently=True)
        if key is not None:
            with contextlib.suppress(StoreSealedError, MissingExtraError):  # without its records it opens nothing
                self._keys.forget(str(key))
        return count

    def expire(self) -> int:
        """Delete what was kept for as long as it may be; return how many went. Adding and querying do it anyway."""
        keep_s = self._setting("keep_s")
        if keep_s is None:
            return 0
        before_s = self._clock() - float(keep_s)
        with self._file.transaction("DEFERRED") as db:
            if db.execute("SELECT 1 FROM examples WHERE at_s < ? LIMIT 1", (before_s,)).fetchone() is None:
                return 0
        with self._file.transaction() as db:
            count = db.execute("DELETE FROM examples WHERE at_s < ?", (before_s,)).rowcount
        self._file.scrub(patiently=False)
        return count

    def num_bytes(self) -> int:
        """Return how much of the file is in use."""
        return self._file.num_bytes()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "ExampleStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _settle(self, max_bytes: int | None, keep_s: float | None, encrypt: bool) -> None:
        """Write down what was asked for, and take over what was written down before."""
        with self._file.transaction() as db:
            for name, value in (("max_bytes", max_bytes), ("keep_s", keep_s)):
                if value is not None:
                    db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))
            if encrypt and _setting(db, "encrypted") is None:
                if db.execute("SELECT 1 FROM examples LIMIT 1").fetchone() is not None:
                    raise StoreSealedError(
                        "example store",
                        expected="an encrypted store",
                        got="one with examples that are not encrypted",
                        hint="forget the examples first, or take another store",
                    )
                db.execute("INSERT INTO settings VALUES ('encrypted', 1)")
                self._sealer(db, make=True)  # a keyring that keeps no key is found out now
        limit = self._setting("max_bytes")
        self._file.limit(None if limit is None else int(limit))

    def _insert(
        self, collection: str, split: str, columns: Tensors, fields: Sequence[FieldSpec], num_evicted: int
    ) -> int:
        """Delete the oldest ``num_evicted`` examples and store new ones, in one transaction; return how many went."""
        now_s = self._clock()
        with self._file.transaction() as db:
            gone = 0
            if num_evicted:
                sql = "DELETE FROM examples WHERE id IN (SELECT id FROM examples ORDER BY id LIMIT ?)"
                gone = db.execute(sql, (num_evicted,)).rowcount
            text = fields_text(fields)
            db.execute("INSERT OR IGNORE INTO layouts (fields) VALUES (?)", (text,))
            (layout,) = db.execute("SELECT id FROM layouts WHERE fields = ?", (text,)).fetchone()
            rows = encoded_rows(columns, fields)
            if _setting(db, "encrypted") is not None:
                sealer, context = self._sealer(db, make=True), _context(collection, split, layout)
                rows = (("", sealer.seal(record, context)) for _, record in rows)
            db.executemany(
                "INSERT INTO examples (collection, split, layout, scalars, record, at_s) VALUES (?, ?, ?, ?, ?, ?)",
                ((collection, split, layout, *row, now_s) for row in rows),
            )
        return gone

    def _check_room(self, count: int, num_bytes: int) -> None:
        """Refuse at once what could never fit: a million rows are not copied first."""
        limit = self._setting("max_bytes")
        if limit is not None and num_bytes > limit:
            raise StorageFullError(
                "example store",
                expected=f"examples that fit into its {limit} bytes",
                got=f"{count} examples of {num_bytes} bytes",
                hint="add fewer at a time, or raise max_bytes",
            )

    def _sealer(self, db: sqlite3.Connection, *, make: bool = False) -> Sealer:
        """Return the sealer of the store's key; with ``make``, in a writing transaction, of a new key if need be."""
        name = _setting(db, "key")
        if name is None and make:
            name = os.urandom(16).hex()
            self._keys.put(name, new_key())
            db.execute("INSERT INTO settings VALUES ('key', ?)", (name,))
        if name not in self._sealers:
            if name is None or (key := self._keys.get(name)) is None:
                raise StoreSealedError(
                    "example store",
                    expected="its key in the system's keyring",
                    got="no such key",
                    hint="nothing was stored or read; `covey device forget --examples` deletes what cannot be read",
                )
            self._sealers[name] = Sealer(key)
        return self._sealers[name]

    def _setting(self, name: str) -> Any:
        with self._file.transaction("DEFERRED") as db:
            return _setting(db, name)

    def _total(self) -> int:
        with self._file.transaction("DEFERRED") as db:
            return int(db.execute("SELECT count(*) FROM examples").fetchone()[0])


def _setting(db: sqlite3.Connection, name: str) -> Any:
    row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def _context(collection: str, split: str, layout: int) -> str:
    """Return what a sealed record is bound to: it cannot be passed off as one of another collection."""
    return f"{collection}\x00{split}\x00{layout}"
