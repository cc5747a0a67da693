"""The contract suite on the storages that come with Covey, and on broken ones, which it must catch."""

import pytest

from covey.storage.memory import MemoryStorage
from covey.storage.sqlite import SqliteStorage
from covey.testing.releases import candidate_of, release_checks
from covey.testing.storage import KEEP_CHECKPOINTS, begin, storage_checks, summary_of
from covey.types.errors import NotFoundError
from covey.types.tensors import sha256_hex

CHECKS = (*storage_checks(), *release_checks())
by_name = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@by_name
def test_memory(check):
    storage = MemoryStorage(keep_checkpoints=KEEP_CHECKPOINTS)
    check(lambda: storage)


@by_name
def test_sqlite(check, tmp_path):
    check(lambda: SqliteStorage(tmp_path, keep_checkpoints=KEEP_CHECKPOINTS))


class KeepsAll(MemoryStorage):
    def __init__(self):
        super().__init__(keep_checkpoints=1000)


class KeepsOne(MemoryStorage):
    def __init__(self):
        super().__init__(keep_checkpoints=1)


class ForgetsRows(MemoryStorage):
    def rounds(self, population, after=0):
        return super().rounds(population, after)[-3:]


class MovesWhenAbandoned(MemoryStorage):
    def add_summary(self, population, summary):
        self.commit_round(population, summary, b"checkpoint", b"")


class CreatesTwice(MemoryStorage):
    def create(self, record):
        self._populations.pop(record.population, None)
        super().create(record)


class DropsTheExtra(MemoryStorage):
    def commit_round(self, population, summary, checkpoint, extra):
        super().commit_round(population, summary, checkpoint, b"")


class InventsBlobs(MemoryStorage):
    def blob(self, sha256):
        return self._blobs.get(sha256, b"")


class RefundsAbandoned(MemoryStorage):
    def add_summary(self, population, summary):
        super().add_summary(population, summary)
        self._charges.pop(population, None)


class ChargesBeforeItAsks(MemoryStorage):
    def charge_privacy(self, population, charges, admit):
        super().charge_privacy(population, charges, lambda spent: None)
        admit(self.privacy_spent(population))


class HoldsNothing(MemoryStorage):
    def __init__(self):
        super().__init__(keep_checkpoints=KEEP_CHECKPOINTS)

    def hold(self, population, names):
        pass


class HoldsForEver(HoldsNothing):
    def hold(self, population, names):
        self._held.setdefault(population, set()).update(names)


class ForgetsPending(MemoryStorage):
    def __init__(self):
        super().__init__(keep_checkpoints=KEEP_CHECKPOINTS)
        self.release_store.needed = set


class SkipsVersions(MemoryStorage):
    def __init__(self):
        super().__init__(keep_checkpoints=KEEP_CHECKPOINTS)
        publish = self.release_store.publish

        def lenient(release):
            newest = len(self.release_store.releases(release.population))
            publish(type(release)(**{**as_dict(release), "version": newest + 1}))

        self.release_store.publish = lenient


class DecidesTwice(MemoryStorage):
    def __init__(self):
        super().__init__(keep_checkpoints=KEEP_CHECKPOINTS)
        settle = self.release_store.settle

        def lenient(population, candidate, release):
            rows = self.release_store._candidates.get(population, [])
            for i, row in enumerate(rows):
                if row.round == candidate.round:
                    rows[i] = candidate_of(row.round, task=row.task)
            settle(population, candidate, release)

        self.release_store.settle = lenient


def as_dict(struct):
    return {f: getattr(struct, f) for f in struct.__struct_fields__}


@pytest.mark.parametrize(
    "broken",
    [
        HoldsNothing,
        HoldsForEver,
        ForgetsPending,
        SkipsVersions,
        DecidesTwice,
        RefundsAbandoned,
        ChargesBeforeItAsks,
        KeepsAll,
        KeepsOne,
        ForgetsRows,
        MovesWhenAbandoned,
        CreatesTwice,
        DropsTheExtra,
        InventsBlobs,
    ],
)
def test_the_suite_catches_a_broken_storage(broken):
    caught = 0
    for check in CHECKS:
        storage = broken()
        try:
            check(lambda storage=storage: storage)
        except (AssertionError, NotFoundError):
            caught += 1
    assert 0 < caught < len(CHECKS)


def test_the_suite_catches_a_storage_that_forgets_when_it_is_closed():
    check = next(c for c in storage_checks() if c.__name__ == "the_last_commit_is_there_after_reopening")
    with pytest.raises(AssertionError, match="reopening gives the last committed round"):
        check(lambda: MemoryStorage(keep_checkpoints=KEEP_CHECKPOINTS))


@pytest.mark.parametrize("make", [lambda path: MemoryStorage(keep_checkpoints=0), None], ids=["memory", "sqlite"])
def test_the_newest_checkpoint_is_kept_whatever_the_setting(make, tmp_path):
    storage = make(tmp_path) if make else SqliteStorage(tmp_path, keep_checkpoints=0)
    begin(storage)
    for number in (1, 2, 3):
        storage.commit_round("p", summary_of(number), b"%d" % number, b"")
        assert storage.blob(sha256_hex(b"%d" % number)) == b"%d" % number
    storage.close()
