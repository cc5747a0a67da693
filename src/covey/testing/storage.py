"""The contract of :class:`covey.storage.interface.Storage`, as checks to run on any implementation.

::

    @pytest.mark.parametrize("check", storage_checks(), ids=lambda check: check.__name__)
    def test_my_storage_keeps_the_contract(check, tmp_path):
        check(lambda: MyStorage(tmp_path, keep_checkpoints=2))

A check gets a function that opens the storage. The first call gives an empty one; every later call, after the former
was closed, gives what the former left behind. It must keep :data:`KEEP_CHECKPOINTS` checkpoints. A broken law is an
AssertionError that says which. What only an implementation can know (a crash, a full disk, bytes that were changed
behind its back) is for its own tests. For ``release_store`` run :func:`covey.testing.releases.release_checks` besides.
"""

from collections.abc import Callable
from functools import partial

from covey.storage.interface import PopulationRecord, PrivacyCharge, Storage
from covey.testing.laws import expect as _expect
from covey.testing.laws import expect_error as _expect_error
from covey.types.errors import NotFoundError, StorageError
from covey.types.tensors import sha256_hex
from covey.wire.messages import RoundSummary

__all__ = ["KEEP_CHECKPOINTS", "Check", "Open", "begin", "storage_checks", "summary_of"]

KEEP_CHECKPOINTS = 2
"""How many checkpoints the storage under test keeps."""

Open = Callable[[], Storage]
Check = Callable[[Open], None]


def storage_checks() -> tuple[Check, ...]:
    """Return every check of this module."""
    return (
        blobs_come_back,
        unknown_blobs_are_refused,
        unknown_populations_are_empty,
        populations_are_created_once,
        rounds_are_committed_whole,
        commits_for_nobody_change_nothing,
        abandoned_rounds_change_only_the_list,
        rounds_are_listed_in_order,
        the_last_commit_is_there_after_reopening,
        old_checkpoints_go_and_the_newest_stays,
        a_checkpoint_that_comes_again_stays,
        populations_do_not_touch_each_other,
        privacy_charges_add_up_and_stay,
        refused_privacy_charges_change_nothing,
        privacy_ledgers_do_not_touch_each_other,
    )


def summary_of(number: int, status: str = "committed") -> RoundSummary:
    """Return a round's row to store; rows of different numbers differ."""
    return RoundSummary(
        round=number,
        status=status,
        reason="" if status == "committed" else "too_few_reports",
        selected=number + 3,
        reported=number + 2,
        lost=1,
        seconds=number / 8,
        bytes_down=5 * number,
        bytes_up=7 * number,
        metrics={"loss": number / 4},
    )


def begin(storage: Storage, population: str = "p") -> PopulationRecord:
    """Create a population at round 0 and return its record."""
    plan, checkpoint = storage.put_blob(b"plan"), storage.put_blob(b"checkpoint 0")
    record = PopulationRecord(population, plan, "5160", 0, checkpoint)
    storage.create(record)
    return record


def blobs_come_back(open_storage: Open) -> None:
    """Check that a blob's name is its SHA-256, and that it comes back, twice stored or empty."""
    storage = open_storage()
    for data in (b"abc", b"", b"abc", bytes(range(256)) * 300):
        name = storage.put_blob(data)
        _expect(name == sha256_hex(data), "a blob's name is its SHA-256")
        _expect(storage.blob(name) == data, "a blob comes back as it was")
    storage.close()


def unknown_blobs_are_refused(open_storage: Open) -> None:
    """Check that every name but a stored blob's raises NotFoundError, a path among them."""
    storage = open_storage()
    name = storage.put_blob(b"abc")
    for unknown in (sha256_hex(b"other"), "", name[:63], name.upper(), f"../{name}", "../server.db", "\x00" * 64):
        _expect_error(NotFoundError, partial(storage.blob, unknown), "an unknown blob is not found")
    storage.close()


def unknown_populations_are_empty(open_storage: Open) -> None:
    """Check that a population nobody created has no record and no rounds."""
    storage = open_storage()
    _expect(storage.load("p") is None, "an unknown population has no record")
    _expect(storage.rounds("p") == (), "an unknown population has no rounds")
    storage.close()


def populations_are_created_once(open_storage: Open) -> None:
    """Check that a second creation is refused and leaves the first as it was."""
    storage = open_storage()
    record = begin(storage)
    _expect(storage.load("p") == record, "a new population is loaded as it was created")
    second = PopulationRecord("p", record.plan, "other", 7, record.checkpoint)
    _expect_error(StorageError, lambda: storage.create(second), "a population is created once")
    _expect(storage.load("p") == record, "a refused creation changes nothing")
    storage.close()


def rounds_are_committed_whole(open_storage: Open) -> None:
    """Check that a commit stores checkpoint, extra, row and state, all of them, with or without an extra."""
    storage = open_storage()
    first = begin(storage)
    for number, extra in ((1, b"momentum 1"), (2, b"")):
        data = b"checkpoint %d" % number
        storage.commit_round("p", summary_of(number), data, extra)
        names = (sha256_hex(data), sha256_hex(extra) if extra else "")
        wanted = PopulationRecord("p", first.plan, first.signature, number, *names)
        _expect(storage.load("p") == wanted, "a commit moves the population by one round")
        _expect(storage.blob(names[0]) == data, "a committed checkpoint is stored")
        _expect(not extra or storage.blob(names[1]) == extra, "a committed extra is stored")
        _expect(storage.rounds("p") == tuple(map(summary_of, range(1, number + 1))), "a committed round has its row")
    storage.close()


def commits_for_nobody_change_nothing(open_storage: Open) -> None:
    """Check that a round of an unknown population is refused whole."""
    storage = open_storage()
    record = begin(storage)
    commit = partial(storage.commit_round, "nobody", summary_of(1), b"checkpoint", b"extra")
    _expect_error(StorageError, commit, "a round needs its population")
    _expect_error(StorageError, partial(storage.add_summary, "nobody", summary_of(1)), "a row needs its population")
    _expect(storage.load("nobody") is None, "a refused commit creates no population")
    _expect(storage.rounds("nobody") == (), "a refused commit leaves no row")
    _expect(storage.load("p") == record and storage.rounds("p") == (), "a refused commit changes no other population")
    storage.close()


def abandoned_rounds_change_only_the_list(open_storage: Open) -> None:
    """Check that the row of an abandoned round moves nothing."""
    storage = open_storage()
    record = begin(storage)
    row = summary_of(1, "abandoned")
    storage.add_summary("p", row)
    _expect(storage.load("p") == record, "an abandoned round changes no state")
    _expect(storage.rounds("p") == (row,), "an abandoned round has its row")
    storage.close()


def rounds_are_listed_in_order(open_storage: Open) -> None:
    """Check ``rounds(after=)`` over committed and abandoned rounds."""
    storage = open_storage()
    begin(storage)
    rows = [summary_of(1, "abandoned"), summary_of(1), summary_of(2, "abandoned"), summary_of(2), summary_of(3)]
    for row in rows:
        if row.status == "committed":
            storage.commit_round("p", row, b"checkpoint", b"")
        else:
            storage.add_summary("p", row)
    for after in (0, 1, 4, 5, 6, 1 << 30):
        _expect(storage.rounds("p", after) == tuple(rows[after:]), f"the rounds after the first {after}")
    storage.close()


def the_last_commit_is_there_after_reopening(open_storage: Open) -> None:
    """Check that state, rows and blobs survive closing, and that rounds go on from there."""
    storage = open_storage()
    begin(storage)
    for number in (1, 2, 3):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"extra %d" % number)
        record = storage.load("p")
        storage.close()
        storage = open_storage()
        _expect(storage.load("p") == record, "reopening gives the last committed round")
        _expect(storage.blob(sha256_hex(b"checkpoint %d" % number)) == b"checkpoint %d" % number, "its checkpoint")
        _expect(storage.blob(sha256_hex(b"extra %d" % number)) == b"extra %d" % number, "its extra")
        _expect(storage.blob(sha256_hex(b"plan")) == b"plan", "its plan")
        _expect(len(storage.rounds("p")) == number, "its rows")
    storage.close()


def old_checkpoints_go_and_the_newest_stays(open_storage: Open) -> None:
    """Check that exactly the newest :data:`KEEP_CHECKPOINTS` committed checkpoints, with their extras, are kept."""
    storage = open_storage()
    begin(storage)
    last = 3 * KEEP_CHECKPOINTS
    for number in range(1, last + 1):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"extra %d" % number)
        storage.add_summary("p", summary_of(number + 1, "abandoned"))  # abandoned rounds count for nothing
        for i in range(1, number + 1):
            for data in (b"checkpoint %d" % i, b"extra %d" % i):
                if i > number - KEEP_CHECKPOINTS:
                    _expect(storage.blob(sha256_hex(data)) == data, "the newest checkpoints are kept")
                else:
                    _expect_error(NotFoundError, partial(storage.blob, sha256_hex(data)), "old checkpoints are deleted")
    _expect(storage.blob(sha256_hex(b"plan")) == b"plan", "the plan is kept")
    storage.close()


def a_checkpoint_that_comes_again_stays(open_storage: Open) -> None:
    """Check that an old checkpoint whose bytes are the newest's, or the plan's, is not deleted with its round."""
    storage = open_storage()
    begin(storage)
    pattern = [b"a", b"b", b"a", b"c", b"c", b"c", b"a", b"plan", b"b", b"b", b"b"]
    for number, data in enumerate(pattern, 1):
        storage.commit_round("p", summary_of(number), data, b"always the same")
        for needed in (data, b"always the same", b"plan"):
            _expect(storage.blob(sha256_hex(needed)) == needed, "what the newest round needs is kept")
    storage.close()


def populations_do_not_touch_each_other(open_storage: Open) -> None:
    """Check that one population's rounds leave another's state, rows and newest blobs, though they share bytes."""
    storage = open_storage()
    for name in ("p", "q"):
        begin(storage, name)
        storage.commit_round(name, summary_of(1), b"shared", b"shared extra")
    record = storage.load("p")
    for number in range(2, 3 + 2 * KEEP_CHECKPOINTS):
        storage.commit_round("q", summary_of(number), b"q %d" % number, b"")
    _expect(storage.load("p") == record, "another population's rounds change no state")
    _expect(storage.rounds("p") == (summary_of(1),), "another population's rounds add no rows")
    _expect(storage.blob(sha256_hex(b"shared")) == b"shared", "the newest checkpoint of each population is kept")
    _expect(storage.blob(sha256_hex(b"shared extra")) == b"shared extra", "and its extra")
    storage.close()


def charge_of(number: int, loss: bytes = b"loss", times: int = 1) -> PrivacyCharge:
    """Return a row of a privacy ledger to store; rows of different numbers differ."""
    return PrivacyCharge(plan=f"plan {number}", round=number, phase=0, attempt=f"a{number}", loss=loss, times=times)


def privacy_charges_add_up_and_stay(open_storage: Open) -> None:
    """Check that charges add up by loss, over commits, abandoned rounds and reopening, and that none is taken back."""
    storage = open_storage()
    begin(storage)
    _expect(dict(storage.privacy_spent("p")) == {}, "a new population has spent nothing")
    seen: list[dict[bytes, int]] = []
    rows = [charge_of(1, b"x"), charge_of(1, b"y", 3), charge_of(2, b"x", 2), charge_of(2, b"\x00z")]
    storage.charge_privacy("p", rows[:2], lambda spent: seen.append(dict(spent)))
    storage.add_summary("p", summary_of(1, "abandoned"))
    storage.charge_privacy("p", rows[2:], lambda spent: seen.append(dict(spent)))
    storage.commit_round("p", summary_of(1), b"checkpoint", b"")
    _expect(seen == [{}, {b"x": 1, b"y": 3}], "a charge is admitted by what was spent before it")
    for _ in range(2):
        _expect(dict(storage.privacy_spent("p")) == {b"x": 3, b"y": 3, b"\x00z": 1}, "charges add up by loss")
        _expect(storage.privacy_charges("p") == tuple(rows), "every charge is a row")
        storage.close()
        storage = open_storage()
    storage.close()


def refused_privacy_charges_change_nothing(open_storage: Open) -> None:
    """Check that a charge that is not admitted, or that fails half-way, leaves no row."""
    storage = open_storage()
    begin(storage)
    storage.charge_privacy("p", [charge_of(1)], lambda spent: None)

    def refuse(spent: object) -> None:
        raise NotFoundError("test", expected="a budget", got="none")

    refused = partial(storage.charge_privacy, "p", [charge_of(2), charge_of(3)], refuse)
    _expect_error(NotFoundError, refused, "the error of a refusal comes through")
    _expect(storage.privacy_charges("p") == (charge_of(1),), "a refused charge leaves no row")
    nobody = partial(storage.charge_privacy, "nobody", [charge_of(4)], lambda spent: None)
    _expect_error(StorageError, nobody, "a charge needs its population")
    _expect(storage.privacy_charges("nobody") == (), "a charge for nobody leaves no row")
    storage.charge_privacy("p", [charge_of(2)], lambda spent: None)
    _expect(storage.privacy_charges("p") == (charge_of(1), charge_of(2)), "the next charge is taken as usual")
    storage.close()


def privacy_ledgers_do_not_touch_each_other(open_storage: Open) -> None:
    """Check that one population's charges are not another's, though their losses are the same bytes."""
    storage = open_storage()
    begin(storage, "p")
    begin(storage, "q")
    storage.charge_privacy("p", [charge_of(1, b"same", 5)], lambda spent: None)
    storage.charge_privacy("q", [charge_of(2, b"same", 7)], lambda spent: None)
    _expect(dict(storage.privacy_spent("p")) == {b"same": 5}, "a population's own charges")
    _expect(dict(storage.privacy_spent("q")) == {b"same": 7}, "a population's own charges")
    storage.close()
