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

from functools import partial

from covey.storage.interface import PopulationRecord
from covey.testing.laws import (
    KEEP_CHECKPOINTS,
    Check,
    Open,
    begin,
    charge_of,
    expect,
    expect_error,
    summary_of,
    task_of,
)
from covey.testing.tasks import (
    commits_count_for_their_task,
    evaluations_move_no_model,
    only_kept_versions_come_back,
    rolling_back_is_a_new_version,
    tasks_are_listed_in_order_and_named_once,
    tasks_change_their_state_and_nothing_else,
    what_a_task_reads_is_kept,
)
from covey.types.errors import NotFoundError, StorageError
from covey.types.tensors import sha256_hex

__all__ = ["KEEP_CHECKPOINTS", "Check", "Open", "begin", "charge_of", "storage_checks", "summary_of", "task_of"]


def storage_checks() -> tuple[Check, ...]:
    """Return every check of this module."""
    return (
        blobs_come_back,
        unknown_blobs_are_refused,
        forgotten_blobs_are_gone_unless_they_are_needed,
        held_blobs_stay_until_they_are_let_go,
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
        tasks_are_listed_in_order_and_named_once,
        tasks_change_their_state_and_nothing_else,
        commits_count_for_their_task,
        evaluations_move_no_model,
        what_a_task_reads_is_kept,
        rolling_back_is_a_new_version,
        only_kept_versions_come_back,
        privacy_charges_add_up_and_stay,
        refused_privacy_charges_change_nothing,
        privacy_ledgers_do_not_touch_each_other,
    )


def blobs_come_back(open_storage: Open) -> None:
    """Check that a blob's name is its SHA-256, and that it comes back, twice stored or empty."""
    storage = open_storage()
    for data in (b"abc", b"", b"abc", bytes(range(256)) * 300):
        name = storage.put_blob(data)
        expect(name == sha256_hex(data), "a blob's name is its SHA-256")
        expect(storage.blob(name) == data, "a blob comes back as it was")
    storage.close()


def unknown_blobs_are_refused(open_storage: Open) -> None:
    """Check that every name but a stored blob's raises NotFoundError, a path among them."""
    storage = open_storage()
    name = storage.put_blob(b"abc")
    for unknown in (sha256_hex(b"other"), "", name[:63], name.upper(), f"../{name}", "../server.db", "\x00" * 64):
        expect_error(NotFoundError, partial(storage.blob, unknown), "an unknown blob is not found")
    storage.close()


def forgotten_blobs_are_gone_unless_they_are_needed(open_storage: Open) -> None:
    """Check that a broadcast can be deleted, and that what a population stands on cannot."""
    storage = open_storage()
    record = begin(storage)
    loose = storage.put_blob(b"a broadcast")
    storage.forget({loose, record.checkpoint, sha256_hex(b"never there")})
    expect_error(NotFoundError, partial(storage.blob, loose), "a forgotten blob is gone")
    expect(storage.blob(record.checkpoint) == b"checkpoint 0", "what a population needs stays")
    storage.close()


def held_blobs_stay_until_they_are_let_go(open_storage: Open) -> None:
    """Check that a version which devices still download outlives any number of commits, and goes when it is let go."""
    storage = open_storage()
    first = begin(storage).checkpoint
    loose = storage.put_blob(b"a broadcast")
    storage.hold("p", {first, loose})
    for number in range(1, KEEP_CHECKPOINTS + 3):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"")
    storage.forget({loose})
    expect(storage.blob(first) == b"checkpoint 0" and storage.blob(loose) == b"a broadcast", "what is held stays")
    newest = sha256_hex(b"checkpoint %d" % (KEEP_CHECKPOINTS + 2))
    storage.hold("p", {loose, newest})
    expect_error(NotFoundError, partial(storage.blob, first), "what is let go, and nothing needs, is gone")
    expect(storage.blob(loose) == b"a broadcast", "what is held again stays")
    storage.hold("p", set())
    expect_error(NotFoundError, partial(storage.blob, loose), "nothing is held any more")
    expect(storage.blob(newest) != b"", "what a population needs stays when it is let go")
    storage.close()


def unknown_populations_are_empty(open_storage: Open) -> None:
    """Check that a population nobody created has no record and no rounds."""
    storage = open_storage()
    expect(storage.load("p") is None, "an unknown population has no record")
    expect(storage.rounds("p") == (), "an unknown population has no rounds")
    expect(storage.tasks("p") == () and storage.versions("p") == (), "and no tasks and no versions")
    expect(storage.populations() == (), "an unknown population is not listed")
    storage.close()


def populations_are_created_once(open_storage: Open) -> None:
    """Check that a second creation is refused and leaves the first as it was."""
    storage = open_storage()
    record = begin(storage)
    expect(storage.load("p") == record, "a new population is loaded as it was created")
    second = PopulationRecord("p", 7, record.checkpoint)
    expect_error(StorageError, lambda: storage.create(second), "a population is created once")
    expect(storage.load("p") == record, "a refused creation changes nothing")
    begin(storage, "a later one")
    expect(storage.populations() == ("p", "a later one"), "populations are listed in order")
    storage.close()


def rounds_are_committed_whole(open_storage: Open) -> None:
    """Check that a commit stores checkpoint, extra, row and state, all of them, with or without an extra."""
    storage = open_storage()
    begin(storage)
    for number, extra in ((1, b"momentum 1"), (2, b"")):
        data = b"checkpoint %d" % number
        storage.commit_round("p", summary_of(number), data, extra)
        names = (sha256_hex(data), sha256_hex(extra) if extra else "")
        wanted = PopulationRecord("p", number, *names)
        expect(storage.load("p") == wanted, "a commit moves the population by one round")
        expect(storage.blob(names[0]) == data, "a committed checkpoint is stored")
        expect(not extra or storage.blob(names[1]) == extra, "a committed extra is stored")
        expect(storage.rounds("p") == tuple(map(summary_of, range(1, number + 1))), "a committed round has its row")
    storage.close()


def commits_for_nobody_change_nothing(open_storage: Open) -> None:
    """Check that a round of an unknown population is refused whole."""
    storage = open_storage()
    record = begin(storage)
    commit = partial(storage.commit_round, "nobody", summary_of(1), b"checkpoint", b"extra")
    expect_error(StorageError, commit, "a round needs its population")
    expect_error(StorageError, partial(storage.add_summary, "nobody", summary_of(1)), "a row needs its population")
    stranger = partial(storage.commit_round, "p", summary_of(1, task="other"), b"checkpoint", b"extra")
    expect_error(StorageError, stranger, "a round needs its task")
    evaluation = partial(storage.commit_evaluation, "p", summary_of(1, task="other"))
    expect_error(StorageError, evaluation, "an evaluation needs its task")
    expect(storage.load("nobody") is None, "a refused commit creates no population")
    expect(storage.rounds("nobody") == (), "a refused commit leaves no row")
    expect(storage.load("p") == record and storage.rounds("p") == (), "a refused commit changes no other population")
    storage.close()


def abandoned_rounds_change_only_the_list(open_storage: Open) -> None:
    """Check that the row of an abandoned round moves nothing."""
    storage = open_storage()
    record = begin(storage)
    row = summary_of(1, "abandoned")
    storage.add_summary("p", row)
    expect(storage.load("p") == record, "an abandoned round changes no state")
    expect(storage.rounds("p") == (row,), "an abandoned round has its row")
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
        expect(storage.rounds("p", after) == tuple(rows[after:]), f"the rounds after the first {after}")
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
        expect(storage.load("p") == record, "reopening gives the last committed round")
        expect(storage.blob(sha256_hex(b"checkpoint %d" % number)) == b"checkpoint %d" % number, "its checkpoint")
        expect(storage.blob(sha256_hex(b"extra %d" % number)) == b"extra %d" % number, "its extra")
        expect(storage.blob(sha256_hex(b"plan")) == b"plan", "its plan")
        expect(len(storage.rounds("p")) == number, "its rows")
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
                    expect(storage.blob(sha256_hex(data)) == data, "the newest checkpoints are kept")
                else:
                    expect_error(NotFoundError, partial(storage.blob, sha256_hex(data)), "old checkpoints are deleted")
    expect(storage.blob(sha256_hex(b"plan")) == b"plan", "the plan is kept")
    storage.close()


def a_checkpoint_that_comes_again_stays(open_storage: Open) -> None:
    """Check that an old checkpoint whose bytes are the newest's, or the plan's, is not deleted with its round."""
    storage = open_storage()
    begin(storage)
    pattern = [b"a", b"b", b"a", b"c", b"c", b"c", b"a", b"plan", b"b", b"b", b"b"]
    for number, data in enumerate(pattern, 1):
        storage.commit_round("p", summary_of(number), data, b"always the same")
        for needed in (data, b"always the same", b"plan"):
            expect(storage.blob(sha256_hex(needed)) == needed, "what the newest round needs is kept")
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
    expect(storage.load("p") == record, "another population's rounds change no state")
    expect(storage.rounds("p") == (summary_of(1),), "another population's rounds add no rows")
    expect(storage.blob(sha256_hex(b"shared")) == b"shared", "the newest checkpoint of each population is kept")
    expect(storage.blob(sha256_hex(b"shared extra")) == b"shared extra", "and its extra")
    storage.close()


def privacy_charges_add_up_and_stay(open_storage: Open) -> None:
    """Check that charges add up by loss, over commits, abandoned rounds and reopening, and that none is taken back."""
    storage = open_storage()
    begin(storage)
    expect(dict(storage.privacy_spent("p")) == {}, "a new population has spent nothing")
    seen: list[dict[bytes, int]] = []
    rows = [charge_of(1, b"x"), charge_of(1, b"y", 3), charge_of(2, b"x", 2), charge_of(2, b"\x00z")]
    storage.charge_privacy("p", rows[:2], lambda spent: seen.append(dict(spent)))
    storage.add_summary("p", summary_of(1, "abandoned"))
    storage.charge_privacy("p", rows[2:], lambda spent: seen.append(dict(spent)))
    storage.commit_round("p", summary_of(1), b"checkpoint", b"")
    expect(seen == [{}, {b"x": 1, b"y": 3}], "a charge is admitted by what was spent before it")
    for _ in range(2):
        expect(dict(storage.privacy_spent("p")) == {b"x": 3, b"y": 3, b"\x00z": 1}, "charges add up by loss")
        expect(storage.privacy_charges("p") == tuple(rows), "every charge is a row")
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
    expect_error(NotFoundError, refused, "the error of a refusal comes through")
    expect(storage.privacy_charges("p") == (charge_of(1),), "a refused charge leaves no row")
    nobody = partial(storage.charge_privacy, "nobody", [charge_of(4)], lambda spent: None)
    expect_error(StorageError, nobody, "a charge needs its population")
    expect(storage.privacy_charges("nobody") == (), "a charge for nobody leaves no row")
    storage.charge_privacy("p", [charge_of(2)], lambda spent: None)
    expect(storage.privacy_charges("p") == (charge_of(1), charge_of(2)), "the next charge is taken as usual")
    storage.close()


def privacy_ledgers_do_not_touch_each_other(open_storage: Open) -> None:
    """Check that one population's charges are not another's, though their losses are the same bytes."""
    storage = open_storage()
    begin(storage, "p")
    begin(storage, "q")
    storage.charge_privacy("p", [charge_of(1, b"same", 5)], lambda spent: None)
    storage.charge_privacy("q", [charge_of(2, b"same", 7)], lambda spent: None)
    expect(dict(storage.privacy_spent("p")) == {b"same": 5}, "a population's own charges")
    expect(dict(storage.privacy_spent("q")) == {b"same": 7}, "a population's own charges")
    storage.close()
