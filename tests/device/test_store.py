"""The example store in an application's hands: declared types, limits, ageing, deletion, encryption, damage."""

import json
import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from covey.device.examples import ExampleStore
from covey.device.files import quarantined
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.types.errors import (
    ExampleError,
    MissingExtraError,
    StorageError,
    StorageFullError,
    StoreCorruptError,
    StoreSealedError,
)

FIELDS = (
    FieldSpec(name="n", dtype="int32", num_values=1 << 30),
    FieldSpec(name="v", shape=(3,)),
    FieldSpec(name="ok", dtype="bool"),
)


def schema(fields=FIELDS, **query):
    return ExampleSchema(fields=tuple(fields), query=Query(**{"collection": "c", **query}))


def rows(*numbers):
    n = np.array(numbers, np.int32)
    return {"n": n, "v": np.repeat(n[:, None], 3, 1).astype(np.float32), "ok": n % 2 == 0}


class Keys:
    """A keyring in memory."""

    def __init__(self):
        self.kept = {}

    def get(self, name):
        return self.kept.get(name)

    def put(self, name, key):
        self.kept[name] = key

    def forget(self, name):
        self.kept.pop(name, None)


@pytest.fixture
def store(tmp_path):
    with ExampleStore(tmp_path / "examples.db") as s:
        s.declare(schema())
        yield s


def numbers(store, **query):
    return store.query(schema(**query))["n"].tolist()


def test_one_example_from_plain_values(store):
    store.add("c", {"n": 3, "v": [1, 2.5, 3], "ok": True, "more": "is left out"})
    store.add("c", {"n": np.int32(4), "v": np.ones(3, np.float32), "ok": np.bool_(False)}, split="test")
    out = store.query(schema())
    assert out["n"].tolist() == [3] and out["v"].tolist() == [[1.0, 2.5, 3.0]] and out["ok"].tolist() == [True]
    assert numbers(store, split="test") == [4]


GOOD = {"n": 3, "v": [1.0, 2.0, 3.0], "ok": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2.5}, "field 'n': expected int32 .*, got a number that it cannot hold"),
        ({"n": 1 << 40}, "got a number that it cannot hold"),
        ({"n": -1}, "expected integers from 0 to"),
        ({"n": "3"}, "expected int32"),
        ({"n": None}, "expected int32"),
        ({"n": [3]}, r"expected int32 \[\], got int64 \[1\]"),
        ({"n": np.int64(3)}, r"expected int32 \[\], got int64"),
        ({"v": [1.0, 2.0]}, r"field 'v': expected float32 \[3\]"),
        ({"v": [[1.0], 2.0, 3.0]}, "a list of unequal lists"),
        ({"v": np.ones(3)}, "got float64"),
        ({"v": [1.0, float("nan"), 2.0]}, "field 'v': expected finite values, got a NaN or an infinity"),
        ({"v": [1.0, 1e60, 2.0]}, "a NaN or an infinity"),
        ({"ok": 2}, "a number that it cannot hold"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_nothing_is_stored(store, change, message):
    with pytest.raises(ExampleError, match=message):
        store.add("c", {**GOOD, **change})
    with pytest.raises(ExampleError, match="no such field"):
        store.add("c", {k: v for k, v in GOOD.items() if k not in change})
    assert store.count("c") == 0


def test_a_collection_has_to_be_declared_and_may_change(store):
    with pytest.raises(ExampleError, match="collection 'other': expected one that was declared"):
        store.add("other", GOOD)
    store.add("c", GOOD)
    store.declare(schema([*FIELDS, FieldSpec(name="w")]))
    store.add("c", {**GOOD, "w": 1})
    assert numbers(store) == [3, 3]
    with pytest.raises(ExampleError, match="field 'w'"):
        store.query(schema([FieldSpec(name="w")]))


def test_no_rows_are_no_examples(store):
    assert store.add_many("c", rows(), schema()) == 0
    assert numbers(store) == [] and store.contents() == []


def test_a_million_rows_that_cannot_fit_are_refused_before_they_are_copied(tmp_path):
    wide = [FieldSpec(name="x", shape=(4096,))]
    million = {"x": np.broadcast_to(np.float32(0), (10**6, 4096))}  # 16 GB, were they written out
    with ExampleStore(tmp_path / "e.db", max_bytes=1 << 20) as s:
        with pytest.raises(StorageFullError, match=r"fit into its 1048576 bytes, got 1000000 examples of 16384000000"):
            s.add_many("c", million, schema(wide))
        assert s.count("c") == 0


def test_the_oldest_make_room_and_the_file_stays_below_its_limit(tmp_path):
    path, limit = tmp_path / "e.db", 128 << 10
    with ExampleStore(path, max_bytes=limit) as s:
        for start in range(0, 20_000, 100):
            s.add_many("c", rows(*range(start, start + 100)), schema())
        kept = numbers(s)
        assert kept == list(range(kept[0], 20_000)) and 500 < len(kept) < 5000
        assert s.num_bytes() <= limit
    assert path.stat().st_size <= limit
    with ExampleStore(path) as again:  # the limit was written down: it holds for every process
        again.add_many("c", rows(*range(20_000, 20_200)), schema())
        assert numbers(again)[-1] == 20_199 and again.num_bytes() <= limit


def test_time_to_live(tmp_path):
    now = [1000.0]
    with ExampleStore(tmp_path / "e.db", keep_s=100.0, clock=lambda: now[0]) as s:
        s.add_many("c", rows(1), schema())
        now[0] = 1060.0
        s.add_many("c", rows(2), schema())
        now[0] = 1100.0
        assert numbers(s) == [1, 2]
        now[0] = 1101.0
        assert numbers(s) == [2] and s.count("c") == 1
        (contents,) = s.contents()
        assert (contents.oldest_at_s, contents.num_examples) == (1060.0, 1)
    with ExampleStore(tmp_path / "e.db", clock=lambda: 1161.0) as s:
        assert numbers(s) == []


def files_of(path):
    return b"".join(p.read_bytes() for p in path.parent.iterdir() if p.name.startswith(path.name))


def secret(count):
    return {**rows(*range(count)), "v": np.full((count, 3), 1.2345678, np.float32)}


MARK = np.full(3, 1.2345678, np.float32).tobytes()


@pytest.mark.parametrize("other_process", [False, True], ids=["alone", "another has it open"])
@pytest.mark.parametrize("how", ["collection", "all", "expired"])
def test_what_is_deleted_is_in_no_file_any_more(tmp_path, other_process, how):
    path, now = tmp_path / "e.db", [0.0]
    with ExampleStore(path, keep_s=10.0, clock=lambda: now[0]) as s:
        other = ExampleStore(path, clock=lambda: now[0]) if other_process else None
        s.add_many("c", secret(3000), schema())
        s.add_many("d", rows(*range(3000)), schema(collection="d"))
        assert MARK in files_of(path)
        size = len(files_of(path))
        if how == "collection":
            assert s.delete("c") == 3000
            assert len(numbers(s, collection="d")) == 3000
        elif how == "all":
            assert s.delete_all() == 6000
            assert len(files_of(path)) < size / 4
        else:
            now[0] = 20.0
            assert s.expire() == 6000
        assert MARK not in files_of(path)
        if other is not None:
            assert other.count("c") == 0
            other.close()


def test_deletion_says_so_while_another_process_still_reads(tmp_path, monkeypatch):
    from covey.device import store_file

    monkeypatch.setattr(store_file, "_BUSY_S", 0.05)
    path = tmp_path / "e.db"
    with ExampleStore(path) as s:
        s.add_many("c", secret(10), schema())
        reader = sqlite3.connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM examples").fetchone()
        with pytest.raises(StorageError, match="no other process that reads it") as caught:
            s.delete("c")
        assert "try again" in caught.value.hint and s.count("c") == 0
        reader.close()
        assert s.delete("c") == 0
        assert MARK not in files_of(path)


def test_encrypted_records_come_back_and_are_not_in_the_files(tmp_path):
    path, keys = tmp_path / "e.db", Keys()
    with ExampleStore(path, encrypt=True, keys=keys) as s:
        s.add_many("c", secret(40), schema())
        assert s.is_encrypted and MARK not in files_of(path)
        assert json.dumps({"n": 17})[1:-1].encode() not in files_of(path)
    with ExampleStore(path, keys=keys) as s:  # nobody need ask again
        out = s.query(schema())
        assert s.is_encrypted and out["v"].tobytes() == MARK * 40 and out["n"].tolist() == list(range(40))
        s.add_many("c", secret(1), schema())
        assert MARK not in files_of(path)
    assert len(keys.kept) == 1 and all(len(k) == 32 for k in keys.kept.values())


@pytest.mark.parametrize(
    "where", [("n", "<", 12), ("ok", "==", True), ("n", "!=", 3), ("absent", "==", 1), ("v", ">", 0)]
)
@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_queries_select_the_same_whether_or_not_a_store_is_encrypted(tmp_path, where, order):
    found = []
    for encrypt in (False, True):
        with ExampleStore(tmp_path / f"{encrypt}.db", encrypt=encrypt, keys=Keys()) as s:
            s.add_many("c", rows(*range(200)), schema())
            asked = schema(where=(where, ("n", ">=", 2)), order=order, limit=9)
            found.append([s.query(asked, at_most=at_most)["n"].tolist() for at_most in (None, 4)])
    assert found[0] == found[1]


def test_a_key_that_is_gone_is_an_error_until_the_examples_are_forgotten(tmp_path):
    path, keys = tmp_path / "e.db", Keys()
    with ExampleStore(path, encrypt=True, keys=keys) as s:
        s.add_many("c", rows(1, 2), schema())
    empty = Keys()
    with ExampleStore(path, keys=empty) as s:
        with pytest.raises(StoreSealedError, match="expected its key in the system's keyring"):
            s.query(schema())
        with pytest.raises(StoreSealedError):
            s.add_many("c", rows(3), schema())
        assert s.count("c") == 2 and empty.kept == {}
        assert s.delete_all() == 2
        s.add_many("c", secret(4), schema())
        assert len(empty.kept) == 1 and len(s.query(schema())["n"]) == 4 and MARK not in files_of(path)


def test_another_key_or_a_changed_record_is_an_error(tmp_path):
    path, keys = tmp_path / "e.db", Keys()
    with ExampleStore(path, encrypt=True, keys=keys) as s:
        s.add_many("c", rows(1), schema())
        s.add_many("d", rows(2), schema(collection="d"))
    (name,) = keys.kept
    other = Keys()
    other.put(name, bytes(32))
    with ExampleStore(path, keys=other) as s, pytest.raises(StoreSealedError, match="another key, or changed bytes"):
        s.query(schema())
    db = sqlite3.connect(path)
    db.execute(
        "UPDATE examples SET record = (SELECT record FROM examples WHERE collection = 'd') WHERE collection = 'c'"
    )
    db.commit()
    db.close()
    with ExampleStore(path, keys=keys) as s:
        with pytest.raises(StoreSealedError):  # a record of another collection opens nowhere else
            s.query(schema())
        assert numbers(s, collection="d") == [2]


def test_encryption_is_never_silently_left_out(tmp_path):
    with ExampleStore(tmp_path / "plain.db") as s:
        s.add_many("c", rows(1), schema())
    with pytest.raises(StoreSealedError, match="one with examples that are not encrypted"):
        ExampleStore(tmp_path / "plain.db", encrypt=True, keys=Keys())

    class Refusing(Keys):
        def put(self, name, key):
            raise StoreSealedError("keyring", expected="open", got="locked")

    with pytest.raises(StoreSealedError, match="locked"):
        ExampleStore(tmp_path / "locked.db", encrypt=True, keys=Refusing())
    with ExampleStore(tmp_path / "locked.db") as s:
        assert not s.is_encrypted and s.contents() == []  # nothing of the attempt was left


def test_the_systems_keyring(tmp_path, monkeypatch):
    keyring = pytest.importorskip("keyring", reason="needs the package keyring (the extra 'keyring')")
    from keyring.backend import KeyringBackend
    from keyring.backends import fail, null

    kept = {}

    class InMemory(KeyringBackend):
        priority = 1

        def get_password(self, service, username):
            return kept.get((service, username))

        def set_password(self, service, username, password):
            kept[service, username] = password

        def delete_password(self, service, username):
            del kept[service, username]

    before = keyring.get_keyring()
    try:
        keyring.set_keyring(InMemory())
        with ExampleStore(tmp_path / "e.db", encrypt=True) as s:
            s.add_many("c", secret(3), schema())
        ((service, _),) = kept
        assert service == "covey example store"
        with ExampleStore(tmp_path / "e.db") as s:
            assert len(numbers(s)) == 3
            s.delete_all()
        assert kept == {}
        for useless in (fail.Keyring(), null.Keyring()):
            keyring.set_keyring(useless)
            with pytest.raises(StoreSealedError, match="system keyring: expected a keyring that keeps the key"):
                ExampleStore(tmp_path / "other.db", encrypt=True)
    finally:
        keyring.set_keyring(before)
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(MissingExtraError) as caught:
        ExampleStore(tmp_path / "third.db", encrypt=True)
    assert caught.value.hint == "pip install 'covey[keyring]'"


def test_a_damaged_store_is_moved_aside_at_the_opening(tmp_path):
    (tmp_path / "ledger.jsonl").write_bytes(b"another file")
    with ExampleStore.of_home(tmp_path) as s:
        s.add_many("c", rows(1, 2), schema())
        assert s.quarantined is None
    path = tmp_path / "examples.db"
    path.write_bytes(b"overwritten " + path.read_bytes()[12:])
    with pytest.raises(StoreCorruptError):
        ExampleStore(path)
    with ExampleStore.of_home(tmp_path) as s:
        assert s.quarantined == path.with_name("examples.db.broken-1")
        assert s.count("c") == 0
        s.add_many("c", rows(3), schema())
        assert numbers(s) == [3]
    assert quarantined(path) == [path.with_name("examples.db.broken-1")]
    assert (tmp_path / "ledger.jsonl").read_bytes() == b"another file"
    with ExampleStore.of_home(tmp_path) as s:
        assert s.quarantined is None and numbers(s) == [3]


def test_damage_that_shows_later_is_told_once_and_the_store_begins_anew(tmp_path):
    path = tmp_path / "examples.db"
    with ExampleStore.of_home(tmp_path) as s:
        s.add_many("c", rows(*range(2000)), schema())
    data = bytearray(path.read_bytes())
    assert len(data) > 20 * 4096
    for page in range(12, len(data) // 4096):  # behind the roots of the tables
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(bytes(data))
    with ExampleStore.of_home(tmp_path) as s:
        with pytest.raises(StoreCorruptError) as caught:
            for _ in range(2):
                s.query(schema())
                s.delete("c")
        assert "kept as examples.db.broken-1" in caught.value.hint
        assert s.count("c") == 0
        s.add_many("c", rows(5), schema())
        assert numbers(s) == [5]


def test_a_store_of_the_first_version_is_taken_over(tmp_path):
    from covey.device.records import encoded_rows, fields_text
    from covey.device.store_file import _SCHEMA

    path = tmp_path / "e.db"
    db = sqlite3.connect(path)
    for statement in _SCHEMA.split(";\n"):
        db.execute(statement)
    fields = sorted(FIELDS, key=lambda f: f.name)
    db.execute("INSERT INTO layouts (fields) VALUES (?)", (fields_text(fields),))
    insert = "INSERT INTO examples (collection, split, layout, scalars, record) VALUES ('c', 'train', 1, ?, ?)"
    db.executemany(insert, encoded_rows(rows(*range(30)), fields))
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    with ExampleStore(path, keep_s=50.0, clock=lambda: 1000.0) as s:
        assert numbers(s) == list(range(30))
    with ExampleStore(path, clock=lambda: 1051.0) as s:
        assert numbers(s) == []


WRITER = """
import sys
from pathlib import Path
from covey.device.examples import ExampleStore
store = ExampleStore.of_home(Path(sys.argv[1]))
start = int(sys.argv[2])
for n in range(start, start + int(sys.argv[3])):
    store.add("c", {"n": n, "v": [n, n, n], "ok": n % 2 == 0})
    print(n, flush=True)
"""


def writer(home, start, count):
    command = [sys.executable, "-c", WRITER, home, str(start), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_processes_that_add_at_the_same_time_lose_nothing(tmp_path):
    with ExampleStore.of_home(tmp_path) as s:
        s.declare(schema())
        writers = [writer(tmp_path, start, 50) for start in (0, 1000, 2000)]
        while any(w.poll() is None for w in writers):
            out = s.query(schema())  # a reader beside them sees whole examples only
            assert (out["v"] == out["n"][:, None]).all()
        for w in writers:
            w.communicate()
            assert w.returncode == 0
        assert sorted(numbers(s)) == [*range(50), *range(1000, 1050), *range(2000, 2050)]


def test_writers_that_are_killed_lose_nothing_that_was_acknowledged(tmp_path):
    with ExampleStore.of_home(tmp_path) as s:
        s.declare(schema())
    writers = [writer(tmp_path, start, 10**6) for start in (0, 10**7)]
    said = [w.stdout.readline() for w in writers for _ in range(10)]
    for w in writers:
        os.kill(w.pid, signal.SIGKILL)
    said += [line for w in writers for line in w.stdout.read().splitlines()]
    for w in writers:
        w.wait()
        w.stdout.close()
    with ExampleStore.of_home(tmp_path) as s:
        assert s.quarantined is None
        assert {int(n) for n in said} <= set(numbers(s))
        assert len(numbers(s)) <= len(said) + 2
