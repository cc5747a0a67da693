"""Releases and the candidates for them, in the server's database."""

import contextlib
import sqlite3
from collections.abc import Callable

import msgspec

from covey.plans.release import Release, decode_release, encode_release
from covey.types.errors import StorageError
from covey.wire.messages import CandidateSummary

__all__ = ["SqliteReleases"]

Guard = Callable[[], contextlib.AbstractContextManager[None]]


class SqliteReleases:
    """See :class:`covey.storage.interface.ReleaseStore`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        keep: int,
        errors: Guard,
        transaction: Guard,
        forget: Callable[[set[str]], None],
    ) -> None:
        """Use the storage's open database.

        Args:
            db: with the tables of :mod:`covey.storage.schema`.
            keep: of how many of the newest releases the checkpoints stay.
            errors: turns the database's errors into Covey's.
            transaction: all of what is done inside, or nothing.
            forget: deletes checkpoints that nothing else needs.
        """
        self._db = db
        self._keep = keep
        self._errors = errors
        self._transaction = transaction
        self._forget = forget

    def propose(self, population: str, candidate: CandidateSummary) -> None:
        """See :class:`ReleaseStore`."""
        c = candidate
        with self._transaction():
            self._db.execute(
                "INSERT INTO candidate (population, task, round, checkpoint, status, data) VALUES (?, ?, ?, ?, ?, ?)",
                (population, c.task, c.round, c.checkpoint, c.status, msgspec.json.encode(c)),
            )

    def settle(self, population: str, candidate: CandidateSummary, release: Release | None) -> None:
        """See :class:`ReleaseStore`."""
        c = candidate
        with self._transaction():
            changed = self._db.execute(
                "UPDATE candidate SET status = ?, data = ? "
                "WHERE population = ? AND task = ? AND round = ? AND status = 'pending'",
                (c.status, msgspec.json.encode(c), population, c.task, c.round),
            ).rowcount
            if changed != 1:
                raise StorageError("candidate", expected="a pending one of that round", got="none")
            if release is not None:
                self._insert(release)
        self._tidy(population, {candidate.checkpoint})

    def publish(self, release: Release) -> None:
        """See :class:`ReleaseStore`."""
        with self._transaction():
            self._insert(release)
        self._tidy(release.population, set())

    def candidates(self, population: str) -> tuple[CandidateSummary, ...]:
        """See :class:`ReleaseStore`."""
        with self._errors():
            rows = self._db.execute(
                "SELECT data FROM candidate WHERE population = ? ORDER BY sequence", (population,)
            ).fetchall()
        return tuple(msgspec.json.decode(data, type=CandidateSummary) for (data,) in rows)

    def releases(self, population: str) -> tuple[Release, ...]:
        """See :class:`ReleaseStore`."""
        with self._errors():
            rows = self._db.execute(
                "SELECT data FROM release WHERE population = ? ORDER BY version", (population,)
            ).fetchall()
        return tuple(decode_release(data) for (data,) in rows)

    def needed(self) -> set[str]:
        """Return the checkpoints that must stay."""
        with self._errors():
            rows = self._db.execute(
                "SELECT checkpoint FROM candidate WHERE status = 'pending' UNION "
                "SELECT checkpoint FROM release AS r WHERE version > "
                "(SELECT max(version) FROM release WHERE population = r.population) - ?",
                (self._keep,),
            ).fetchall()
        return {checkpoint for (checkpoint,) in rows}

    def _insert(self, release: Release) -> None:
        (newest,) = self._db.execute(
            "SELECT coalesce(max(version), 0) FROM release WHERE population = ?", (release.population,)
        ).fetchone()
        if release.version != newest + 1:
            raise StorageError("release", expected=f"version {newest + 1}", got=str(release.version))
        self._db.execute(
            "INSERT INTO release VALUES (?, ?, ?, ?)",
            (release.population, release.version, release.checkpoint, encode_release(release)),
        )

    def _tidy(self, population: str, names: set[str]) -> None:
        """Delete what fell out of the newest releases; a file that cannot be deleted undoes nothing."""
        with contextlib.suppress(StorageError):
            with self._errors():
                rows = self._db.execute(
                    "SELECT checkpoint FROM release WHERE population = ? ORDER BY version DESC LIMIT 1 OFFSET ?",
                    (population, self._keep),
                ).fetchall()
            self._forget(names | {checkpoint for (checkpoint,) in rows})
