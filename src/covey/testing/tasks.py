"""The contract of storage for tasks and versions; :mod:`covey.testing.storage` runs these checks with its own."""

from functools import partial

from covey.storage.interface import PopulationRecord, TaskRecord, Version
from covey.testing.laws import KEEP_CHECKPOINTS, Open, begin, expect, expect_error, summary_of, task_of
from covey.types.errors import NotFoundError, StorageError
from covey.types.tensors import sha256_hex

__all__ = [
    "commits_count_for_their_task",
    "evaluations_move_no_model",
    "only_kept_versions_come_back",
    "rolling_back_is_a_new_version",
    "tasks_are_listed_in_order_and_named_once",
    "tasks_change_their_state_and_nothing_else",
    "what_a_task_reads_is_kept",
]


def tasks_are_listed_in_order_and_named_once(open_storage: Open) -> None:
    """Check that tasks come back as they were added, in order, by population, and that a name is taken once."""
    storage = open_storage()
    begin(storage)
    begin(storage, "q")
    wanted = [task_of(), task_of("zeta", kind="evaluate"), task_of("alpha", kind="evaluate", checkpoint="c" * 64)]
    for task in wanted[1:]:
        storage.add_task(task)
    expect_error(StorageError, partial(storage.add_task, task_of("zeta")), "a task's name is taken once")
    expect_error(StorageError, partial(storage.add_task, task_of("t", "nobody")), "a task needs its population")
    for _ in range(2):
        expect(storage.tasks("p") == tuple(wanted), "tasks are listed in the order of their creation")
        expect(storage.tasks("q") == (task_of(population="q"),), "another population's tasks are its own")
        expect(storage.tasks("nobody") == (), "a refused task is not there")
        storage.close()
        storage = open_storage()
    storage.close()


def tasks_change_their_state_and_nothing_else(open_storage: Open) -> None:
    """Check that a change sets state and settings of the named task, durably, and of no other."""
    storage = open_storage()
    begin(storage)
    storage.add_task(task_of("other"))
    storage.commit_round("p", summary_of(1), b"checkpoint 1", b"")
    storage.change_task("p", "train", "paused", b"new")
    storage.close()
    storage = open_storage()
    old = task_of()
    changed = TaskRecord("p", "train", old.kind, old.plan, old.signature, b"new", "paused", 1, 1)
    expect(storage.tasks("p") == (changed, task_of("other")), "a change sets state and settings of one task")
    for names in (("p", "unknown"), ("nobody", "train")):
        expect_error(StorageError, partial(storage.change_task, *names, "paused", b""), "a change needs its task")
    storage.close()


def commits_count_for_their_task(open_storage: Open) -> None:
    """Check that a commit counts one round for the task of its row, and remembers the version that it made."""
    storage = open_storage()
    begin(storage)
    storage.add_task(task_of("second"))
    for number, task in enumerate(("train", "second", "train", "train"), 1):
        storage.commit_round("p", summary_of(number, task=task), b"checkpoint %d" % number, b"")
        storage.add_summary("p", summary_of(number + 1, "abandoned", task=task))
    counted = [(t.rounds, t.version) for t in storage.tasks("p")]
    expect(counted == [(3, 4), (1, 2)], "a task counts its own committed rounds")
    storage.close()


def evaluations_move_no_model(open_storage: Open) -> None:
    """Check that an evaluation adds its row and counts for its task, and leaves the model and its versions."""
    storage = open_storage()
    begin(storage)
    storage.add_task(task_of("measure", kind="evaluate"))
    storage.commit_round("p", summary_of(1), b"checkpoint 1", b"extra 1")
    before, versions, row = storage.load("p"), storage.versions("p"), summary_of(1, task="measure")
    for count in range(1, 3 + KEEP_CHECKPOINTS):
        storage.commit_evaluation("p", row)
        expect(storage.load("p") == before and storage.versions("p") == versions, "an evaluation moves no model")
        expect(storage.rounds("p")[1:] == (row,) * count, "an evaluation has its row")
        measure = storage.tasks("p")[1]
        expect((measure.rounds, measure.version) == (count, 1), "an evaluation counts for its task")
    expect(storage.blob(before.checkpoint if before else "") == b"checkpoint 1", "and no checkpoint goes for it")
    storage.close()


def what_a_task_reads_is_kept(open_storage: Open) -> None:
    """Check that plans and chosen checkpoints of tasks outlive the rounds that they came from."""
    storage = open_storage()
    begin(storage)
    storage.commit_round("p", summary_of(1), b"chosen", b"its extra")
    storage.add_task(task_of("measure", kind="evaluate", checkpoint=sha256_hex(b"chosen")))
    for number in range(2, 4 + KEEP_CHECKPOINTS):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"")
    expect(storage.blob(sha256_hex(b"chosen")) == b"chosen", "a checkpoint that a task reads is kept")
    expect_error(NotFoundError, partial(storage.blob, sha256_hex(b"its extra")), "and nothing else for it")
    storage.close()


def rolling_back_is_a_new_version(open_storage: Open) -> None:
    """Check that a kept version becomes the newest under the next number, with its row, and that rounds go on."""
    storage = open_storage()
    begin(storage)
    for number in (1, 2):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"extra %d" % number)
    old = storage.versions("p")[0]
    storage.roll_back("p", summary_of(3, "rolled_back"), old)
    for _ in range(2):
        expect(storage.load("p") == PopulationRecord("p", 3, old.checkpoint, old.extra), "an old version is the newest")
        expect(storage.rounds("p")[2:] == (summary_of(3, "rolled_back"),), "a roll-back has its row")
        newest = Version(3, old.checkpoint, old.extra)
        expect(storage.versions("p")[-1] == newest, "and is a version of its own")
        expect(storage.tasks("p")[0].rounds == 2, "a roll-back is no round of the task")
        storage.close()
        storage = open_storage()
    for number in range(4, 4 + KEEP_CHECKPOINTS - 1):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"")
        expect(storage.blob(old.checkpoint) == b"checkpoint 1", "a version that came back is kept like a new one")
    storage.close()


def only_kept_versions_come_back(open_storage: Open) -> None:
    """Check ``versions()`` and that a version that is not kept, or was never there, changes nothing."""
    storage = open_storage()
    record = begin(storage)
    kept: list[Version] = []
    for number in range(1, 3 + KEEP_CHECKPOINTS):
        storage.commit_round("p", summary_of(number), b"checkpoint %d" % number, b"extra %d" % number)
        names = sha256_hex(b"checkpoint %d" % number), sha256_hex(b"extra %d" % number)
        kept.append(Version(number, *names))
        storage.add_summary("p", summary_of(number + 1, "abandoned"))
        expect(storage.versions("p") == tuple(kept[-KEEP_CHECKPOINTS:]), "the newest versions are kept, in order")
    before, rows = storage.load("p"), storage.rounds("p")
    for version in (kept[0], Version(0, record.checkpoint, ""), Version(1, kept[-1].checkpoint, kept[-1].extra)):
        call = partial(storage.roll_back, "p", summary_of(9, "rolled_back"), version)
        expect_error(StorageError, call, "only a kept version comes back")
    expect(storage.load("p") == before and storage.rounds("p") == rows, "a refused roll-back changes nothing")
    storage.close()
