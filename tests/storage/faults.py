"""Run by ``test_faults``, under a library that makes the N-th write of the process fail: walks every N.

``python faults.py WORK KIND``, with ``KIND`` one of ``kill`` (the process dies before the N-th write), ``torn`` (it
dies with half of it done) or ``full`` (the disk is full for that one). A *write* is any call that changes a file, of
Python or of SQLite: write, pwrite, fsync, fdatasync, rename, unlink, ftruncate. Prints how many instants it walked.
"""

import ctypes
import mmap
import os
import shutil
import signal
import sqlite3
import sys
from functools import partial
from pathlib import Path

from covey.storage.blobs import BlobDir
from covey.storage.sqlite import SqliteStorage
from covey.testing.releases import candidate_of, release_of
from covey.testing.storage import begin, charge_of, summary_of, task_of
from covey.types.errors import StorageError

KINDS = {"kill": 0, "torn": 1, "full": 2}
MOST = 2000
DONE = 3
ARM, LEFT = ctypes.CDLL(None).covey_arm, ctypes.CDLL(None).covey_left


def commit(number, storage):
    storage.commit_round("p", summary_of(number), b"checkpoint %d" % number * 500, b"extra %d" % number)


def propose(storage):
    storage.put_blob(b"evaluation plan")
    storage.release_store.propose("p", candidate_of(3, checkpoint=storage.load("p").checkpoint))


def settle(storage):
    release = release_of(1)
    storage.release_store.settle("p", candidate_of(3, "released", checkpoint=storage.load("p").checkpoint), release)


OPERATIONS = (
    begin,
    partial(commit, 1),
    lambda s: s.charge_privacy("p", [charge_of(1), charge_of(2, b"other", 3)], lambda spent: None),
    lambda s: s.add_task(task_of("measure", kind="evaluate")),
    lambda s: s.change_task("p", "measure", "paused", b"new settings"),
    partial(commit, 2),
    lambda s: s.add_summary("p", summary_of(3, "abandoned")),
    partial(commit, 3),  # the first checkpoint goes with this one
    propose,
    settle,
    lambda s: s.roll_back("p", summary_of(4, "rolled_back"), s.versions("p")[0]),
    lambda s: s.charge_privacy("p", [charge_of(4)], lambda spent: None),
)


def snapshot(storage):
    """Return all that the storage says; every blob that it names must be there, whole."""
    record = storage.load("p")
    tasks, versions = storage.tasks("p"), storage.versions("p")
    named = {record.checkpoint, record.extra} if record else set()
    named |= {t.plan for t in tasks} | {n for v in versions for n in (v.checkpoint, v.extra)}
    blobs = {name: storage.blob(name) for name in named - {""}}
    store = storage.release_store
    rounds, charges = storage.rounds("p"), storage.privacy_charges("p")
    spent = dict(storage.privacy_spent("p"))
    return record, tasks, versions, blobs, rounds, charges, spent, store.candidates("p"), store.releases("p")


def opened(path):
    storage = SqliteStorage(path, keep_checkpoints=2)
    assert not list((path / "blobs").glob(".partial-*")), "half-written blobs are removed"
    return storage


def attempt(path, operation, kind, instant, shared, allowed):
    """Do one operation that fails on the way; ``shared[0]`` says that it returned, without a write of its own."""
    storage = opened(path)
    ARM(instant, KINDS[kind])
    try:
        operation(storage)
    except StorageError:
        ARM(0, 0)
        assert kind == "full", "only a full disk is an error; death is silent"
        now = snapshot(storage)
        assert now in allowed, "an operation that fails is done whole or not at all"
        finish(operation, storage, now, allowed)
        shared[0] = 1
        return False
    shared[0] = 1
    return LEFT() > 0


def finish(operation, storage, now, allowed):
    """Do what is left of an operation that failed, as the server does when it tries again or starts again."""
    if now == allowed[0]:
        operation(storage)
    elif now != allowed[-1]:  # a population without its first task
        storage.add_task(task_of())


def walk(work, kind):
    storage, places, states = opened(work / "0"), [work / "0"], []
    for number, operation in enumerate(OPERATIONS):
        states.append(snapshot(storage))
        storage.close()
        places.append(work / str(number + 1))
        shutil.copytree(places[number], places[-1])
        storage = opened(places[-1])
        operation(storage)
    states.append(snapshot(storage))
    storage.close()
    total = 0
    for number, operation in enumerate(OPERATIONS):
        allowed = [states[number], *between(work, states[1], number), states[number + 1]]
        total += walk_operation(work / "case", places[number], operation, kind, allowed)
    print(total)


def between(work, first, number):
    """Creating a population is two transactions, it and its first task: between them is a state of its own."""
    if number:
        return []
    storage = opened(work / "between")
    for data in (b"plan", b"checkpoint 0"):
        storage.put_blob(data)
    storage.create(first[0])
    return [snapshot(storage)]


def walk_operation(path, begun, operation, kind, allowed):
    """Let an operation fail at its first write, its second ... until it has no more; return how many it has."""
    shared = mmap.mmap(-1, 1)
    for instant in range(1, MOST):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(begun, path)
        shared[0] = 0
        if (child := os.fork()) == 0:
            try:
                os._exit(DONE if attempt(path, operation, kind, instant, shared, allowed) else 0)
            except BaseException:
                ARM(0, 0)
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        _, status = os.waitpid(child, 0)
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert died or os.WEXITSTATUS(status) in (0, DONE), f"instant {instant}: the process failed"
        storage = opened(path)
        now = snapshot(storage)
        assert now in (allowed[-1:] if shared[0] else allowed), f"instant {instant}: another state"
        finish(operation, storage, now, allowed)  # it goes on as if nothing had been
        assert snapshot(storage) == allowed[-1], f"instant {instant}: another end"
        storage.close()
        if not died and os.WEXITSTATUS(status) == DONE:
            return instant - 1
    raise AssertionError("more writes than there can be")


def walk_migration(work, kind, script):
    """Open a directory of schema 2, which fails at every instant in turn; afterwards it is brought up to date whole."""
    old = work / "old"
    blobs = BlobDir(old / "blobs")
    for data in (b"plan", *(b"%s %d" % (what, n) for what in (b"checkpoint", b"extra") for n in (0, 1, 2))):
        blobs.put(data)
    db = sqlite3.connect(old / "server.db")
    db.executescript(script.read_text())
    db.close()
    shutil.copytree(old, work / "new")
    storage = opened(work / "new")
    wanted = snapshot(storage)
    storage.close()
    for instant in range(1, MOST):
        path = work / "case"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(old, path)
        child = os.fork()
        if child == 0:
            ARM(instant, KINDS[kind])
            try:
                SqliteStorage(path, keep_checkpoints=2)
            except StorageError:
                os._exit(0)
            os._exit(DONE if LEFT() > 0 else 0)
        _, status = os.waitpid(child, 0)
        storage = opened(path)
        assert snapshot(storage) == wanted, f"migration, instant {instant}"
        storage.close()
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == DONE:
            print(instant - 1)
            return
    raise AssertionError("more writes than there can be")


if __name__ == "__main__":
    if len(sys.argv) > 3:
        walk_migration(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    else:
        walk(Path(sys.argv[1]), sys.argv[2])
