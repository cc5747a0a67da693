"""The contract of :class:`covey.storage.interface.ReleaseStore`, as checks; see :mod:`covey.testing.storage`."""

from functools import partial

import msgspec

from covey.plans.release import Delegation, Release
from covey.storage.interface import Storage
from covey.testing.laws import KEEP_CHECKPOINTS, Check, Open, begin, expect, expect_error, summary_of
from covey.types.errors import NotFoundError, StorageError
from covey.types.tensors import sha256_hex
from covey.wire.messages import CandidateSummary

__all__ = ["candidate_of", "release_checks", "release_of"]


def release_checks() -> tuple[Check, ...]:
    """Return every check of this module."""
    return (
        a_new_population_has_no_releases,
        versions_are_numbered_from_one,
        a_candidate_is_decided_once_and_with_its_release,
        a_candidate_needs_its_population_and_stands_once,
        a_pending_candidate_keeps_its_checkpoint,
        the_newest_releases_keep_their_checkpoints,
        releases_do_not_touch_each_other,
    )


def candidate_of(number: int, status: str = "pending", **fields: object) -> CandidateSummary:
    """Return the candidate of the round that committed ``checkpoint NUMBER``."""
    base = CandidateSummary(round=number, checkpoint=sha256_hex(_data(number)), cohort=number + 2, status=status)
    return msgspec.structs.replace(base, **fields)


def release_of(version: int, number: int | None = None, population: str = "p") -> Release:
    """Return a release of ``checkpoint NUMBER``; its signatures are none, for a storage checks none."""
    return Release(
        population=population,
        version=version,
        plan=sha256_hex(b"plan"),
        checkpoint=sha256_hex(_data(version if number is None else number)),
        num_bytes=12,
        created_at=version,
        delegation=Delegation(population=population, release_key="00" * 32, expires_at=9, signature="11" * 64),
        signature="22" * 64,
        plan_signature="33" * 64,
    )


def a_new_population_has_no_releases(open_storage: Open) -> None:
    """Check that nothing is there at first, also for a population that nobody created."""
    storage = open_storage()
    begin(storage)
    for name in ("p", "nobody"):
        expect(storage.release_store.releases(name) == (), "no releases at first")
        expect(storage.release_store.candidates(name) == (), "no candidates at first")
    storage.close()


def versions_are_numbered_from_one(open_storage: Open) -> None:
    """Check that only the next version is taken, and that releases survive reopening as they were."""
    storage = open_storage()
    begin(storage)
    for version in (1, 2, 3):
        for wrong in (version - 1, version + 1):
            refused = partial(storage.release_store.publish, release_of(wrong))
            expect_error(StorageError, refused, "versions move forward by one")
        storage.release_store.publish(release_of(version))
        expect(
            storage.release_store.releases("p") == tuple(map(release_of, range(1, version + 1))), "releases are listed"
        )
        storage.close()
        storage = open_storage()
    expect_error(
        StorageError, partial(storage.release_store.publish, release_of(1, population="nobody")), "of a population"
    )
    expect(len(storage.release_store.releases("p")) == 3, "releases survive")
    storage.close()


def a_candidate_is_decided_once_and_with_its_release(open_storage: Open) -> None:
    """Check the verdict, that a second one is refused, and that a refused settlement changes nothing."""
    storage = open_storage()
    begin(storage)
    _committed(storage, 1)
    _committed(storage, 2)
    store = storage.release_store
    for number in (1, 2):
        store.propose("p", candidate_of(number))
    promoted, refused = candidate_of(1, "promoted", version=1), candidate_of(2, "refused", reason="not_finite")
    expect_error(StorageError, partial(store.settle, "p", promoted, release_of(2)), "the next version only")
    expect(store.candidates("p") == (candidate_of(1), candidate_of(2)), "a refused settlement changes no candidate")
    expect(store.releases("p") == (), "a refused settlement adds no release")
    store.settle("p", promoted, release_of(1))
    store.settle("p", refused, None)
    expect_error(StorageError, partial(store.settle, "p", promoted, release_of(2)), "a candidate is decided once")
    for _ in range(2):
        expect(storage.release_store.candidates("p") == (promoted, refused), "verdicts stay, in order")
        expect(storage.release_store.releases("p") == (release_of(1),), "the release came with its verdict")
        storage.close()
        storage = open_storage()
    storage.close()


def a_candidate_needs_its_population_and_stands_once(open_storage: Open) -> None:
    """Check that a round is a candidate once, of a population that exists."""
    storage = open_storage()
    begin(storage)
    store = storage.release_store
    store.propose("p", candidate_of(1))
    expect_error(StorageError, partial(store.propose, "p", candidate_of(1)), "a round stands once")
    store.propose("p", candidate_of(1, task="another"))
    expect_error(StorageError, partial(store.propose, "nobody", candidate_of(1)), "a candidate needs its population")
    expect_error(StorageError, partial(store.settle, "p", candidate_of(5, "refused"), None), "it must have stood")
    expect(len(store.candidates("p")) == 2, "refused candidates leave no row")
    storage.close()


def a_pending_candidate_keeps_its_checkpoint(open_storage: Open) -> None:
    """Check that a checkpoint stays while it is pending, however many rounds follow, and goes when it is refused."""
    storage = open_storage()
    begin(storage)
    _committed(storage, 1)
    storage.release_store.propose("p", candidate_of(1))
    for number in range(2, 4 + 2 * KEEP_CHECKPOINTS):
        _committed(storage, number)
    name = sha256_hex(_data(1))
    expect(storage.blob(name) == _data(1), "a pending candidate's checkpoint is kept")
    storage.release_store.settle("p", candidate_of(1, "refused"), None)
    expect_error(NotFoundError, partial(storage.blob, name), "a refused candidate's checkpoint is not kept for ever")
    storage.close()


def the_newest_releases_keep_their_checkpoints(open_storage: Open) -> None:
    """Check that the newest :data:`KEEP_CHECKPOINTS` releases can be served, and older ones are deleted."""
    storage = open_storage()
    begin(storage)
    last = 3 + KEEP_CHECKPOINTS
    for number in range(1, last + 1):
        _committed(storage, number)
        storage.release_store.propose("p", candidate_of(number))
        storage.release_store.settle("p", candidate_of(number, "promoted", version=number), release_of(number))
    for number in range(last + 1, last + 3 + KEEP_CHECKPOINTS):
        _committed(storage, number)
    for number in range(1, last + 1):
        name = sha256_hex(_data(number))
        if number > last - KEEP_CHECKPOINTS:
            expect(storage.blob(name) == _data(number), "the newest releases are kept")
        else:
            expect_error(NotFoundError, partial(storage.blob, name), "older releases' checkpoints are deleted")
    storage.close()


def releases_do_not_touch_each_other(open_storage: Open) -> None:
    """Check that populations have versions and checkpoints of their own, though they share bytes."""
    storage = open_storage()
    for name in ("p", "q"):
        begin(storage, name)
        _committed(storage, 1, name)
        storage.release_store.propose(name, candidate_of(1))
        storage.release_store.settle(name, candidate_of(1, "promoted", version=1), release_of(1, population=name))
    for version in range(2, 4 + KEEP_CHECKPOINTS):
        _committed(storage, version, "q")
        storage.release_store.publish(release_of(version, population="q"))
    for number in range(2, 4 + KEEP_CHECKPOINTS):
        _committed(storage, 100 + number, "p")
    expect(storage.release_store.releases("p") == (release_of(1),), "a population's own versions")
    expect(storage.blob(sha256_hex(_data(1))) == _data(1), "what one population releases is not deleted with another's")
    storage.close()


def _data(number: int) -> bytes:
    return b"checkpoint %d" % number


def _committed(storage: Storage, number: int, population: str = "p") -> None:
    storage.commit_round(population, summary_of(number), _data(number), b"")
