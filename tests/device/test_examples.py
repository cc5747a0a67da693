"""The example store: what goes in comes out, queries are data, and neither a kill nor a full disk loses anything."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.device.examples import ExampleStore
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.types.errors import ExampleError, PlanFormatError, StorageError, StorageFullError
from covey.types.tensors import DTYPES

from . import world


def schema(fields=world.SCHEMA.fields, **query) -> ExampleSchema:
    return ExampleSchema(fields=tuple(fields), query=Query(**{"collection": "points", **query}))


@pytest.fixture
def store(tmp_path):
    with ExampleStore(tmp_path / "examples.db") as s:
        yield s


def same(a, b):
    assert set(a) == set(b)
    for k in a:
        assert a[k].dtype == b[k].dtype
        np.testing.assert_array_equal(a[k], b[k])


def test_examples_come_back_oldest_first(store):
    points = world.points(300)
    assert store.add_many("points", {k: v[:7] for k, v in points.items()}, schema()) == 7
    assert store.add_many("points", {k: v[7:] for k, v in points.items()}, schema()) == 293
    same(store.query(schema()), points)
    assert store.count("points") == 300
    assert store.collections() == {"points": 300}


@given(st.data())
def test_every_dtype_and_shape_survives(tmp_path_factory, data):
    fields = [
        FieldSpec(name=f"f{i}", shape=tuple(data.draw(st.lists(st.integers(0, 3), max_size=2))), dtype=dtype)
        for i, dtype in enumerate(data.draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4)))
    ]
    count = data.draw(st.integers(0, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    examples = {f.name: rng.integers(0, 2, (count, *f.shape)).astype(f.dtype) for f in fields}
    with ExampleStore(tmp_path_factory.mktemp("store") / "examples.db") as s:
        assert s.add_many("c", examples, schema(fields)) == count
        same(s.query(schema(fields, collection="c")), examples)


def test_examples_survive_a_reopening(tmp_path):
    with ExampleStore(tmp_path / "e.db") as s:
        s.add_many("points", world.points(5), schema())
    with ExampleStore(tmp_path / "e.db") as s:
        same(s.query(schema()), world.points(5))


def test_splits_are_apart(store):
    train, test = world.points(5, seed=1), world.points(3, seed=2)
    store.add_many("points", train, schema())
    store.add_many("points", test, schema(), split="test")
    same(store.query(schema()), train)
    same(store.query(schema(split="test")), test)
    same(store.query(schema(), split="test"), test)
    assert (store.count("points"), store.count("points", split="test")) == (8, 3)
    with pytest.raises(ExampleError, match="split: expected train or test, got validation"):
        store.add_many("points", test, schema(), split="validation")


def test_order_and_limits(store):
    points = world.points(6)
    store.add_many("points", points, schema())
    same(store.query(schema(limit=4), at_most=2), {k: v[:2] for k, v in points.items()})
    same(store.query(schema(limit=2), at_most=4), {k: v[:2] for k, v in points.items()})
    same(store.query(schema(order="newest", limit=2)), {k: v[:-3:-1] for k, v in points.items()})
    with pytest.raises(PlanFormatError, match="query: order: expected oldest or newest"):
        store.query(schema(order="random(); DROP TABLE examples"))


@pytest.mark.parametrize(
    ("operator", "keep"), [("==", [2]), ("!=", [0, 1, 3]), ("<", [0, 1]), ("<=", [0, 1, 2]), (">", [3]), (">=", [2, 3])]
)
def test_filters(store, operator, keep):
    fields = [FieldSpec(name="n", dtype="int64"), FieldSpec(name="even", dtype="bool"), FieldSpec(name="v", shape=(2,))]
    examples = {
        "n": np.arange(4),
        "even": np.array([True, False, True, False]),
        "v": np.zeros((4, 2), np.float32),
    }
    store.add_many("points", examples, schema(fields))
    assert store.query(schema(fields, where=(("n", operator, 2),)))["n"].tolist() == keep
    both = schema(fields, where=(("n", operator, 2), ("even", "==", True)))
    assert store.query(both)["n"].tolist() == [n for n in keep if n % 2 == 0]


@pytest.mark.parametrize(
    "where", [("n", "OR 1=1 --", 0), ('n") OR 1=1 --', "==", 0), ("n", "==", "0); DROP TABLE examples; --")]
)
def test_filters_are_never_sql(store, where):
    store.add_many("points", {"n": np.arange(4)}, schema([FieldSpec(name="n", dtype="int64")]))
    with pytest.raises(PlanFormatError, match="query: where"):
        store.query(schema([FieldSpec(name="n", dtype="int64")], where=(where,)))
    assert store.count("points") == 4


def test_a_collection_name_is_never_sql(store):
    assert store.query(schema(collection="x' OR '1'='1"))["x"].shape == (0, 3)


def test_nothing_selected_is_empty_arrays_of_the_right_shape(store):
    out = store.query(schema())
    assert out["x"].shape == (0, 3) and out["x"].dtype == np.float32 and out["y"].dtype == np.int32


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(2, np.int32)}, r"expected float32 \[n, 3\]"),
        ({"x": np.zeros((2, 3)), "y": np.zeros(2, np.int32)}, r"got float64 \[2, 3\]"),
        ({"x": np.zeros((2, 3), np.float32), "y": np.full(2, 9, np.int32)}, "integers from 0 to 1"),
        ({"x": np.zeros((2, 3), np.float32)}, "no such field"),
    ],
)
def test_examples_that_do_not_fit_are_refused_and_nothing_is_stored(store, examples, message):
    with pytest.raises(ExampleError, match=message):
        store.add_many("points", examples, schema())
    assert store.count("points") == 0


def test_a_plan_that_asks_for_other_fields_gets_a_clear_error(store):
    store.add_many("points", world.points(2), schema())
    with pytest.raises(ExampleError, match=r"stored examples: field 'z': .* no such field"):
        store.query(schema([FieldSpec(name="z")]))
    with pytest.raises(ExampleError, match=r"field 'x': expected float32 \[5\], got float32 \[3\]"):
        store.query(schema([FieldSpec(name="x", shape=(5,))]))
    with pytest.raises(ExampleError, match=r"field 'y': expected int64 \[\], got int32 \[\]"):
        store.query(schema([FieldSpec(name="y", dtype="int64")]))


def test_a_plan_may_ask_for_some_of_the_fields_and_records_may_differ(store):
    x, y = world.SCHEMA.fields
    extra = FieldSpec(name="at", dtype="float64")
    store.add_many("points", world.points(2), schema())
    store.add_many("points", {**world.points(2, seed=5), "at": np.array([-1.0, 1.0])}, schema([x, y, extra]))
    out = store.query(schema([x]))
    np.testing.assert_array_equal(out["x"], np.concatenate([world.points(2)["x"], world.points(2, seed=5)["x"]]))
    assert store.query(schema([x], where=(("at", ">", 0.0),)))["x"].shape == (1, 3)


def test_deleted_examples_are_gone_from_the_file(tmp_path):
    path = tmp_path / "e.db"
    marks = {"x": np.full((50, 3), 1.2345678, np.float32), "y": np.zeros(50, np.int32)}
    with ExampleStore(path) as s:
        s.add_many("points", marks, schema())
        assert s.delete("points", keep_newest=10) == 40
        assert s.count("points") == 10
        assert s.delete("points") == 10
    assert marks["x"][0].tobytes() not in path.read_bytes()


def test_a_full_store_refuses_and_keeps_what_it_has(tmp_path):
    points = world.points(20)
    with ExampleStore(tmp_path / "e.db", max_bytes=64 << 10) as s:
        s.add_many("points", points, schema())
        with pytest.raises(StorageFullError, match="a full disk or store") as caught:
            s.add_many("points", world.points(3000), schema())
        assert "nothing that was stored is lost" in caught.value.hint
        same(s.query(schema()), points)
        s.add_many("points", world.points(1), schema())
        assert s.count("points") == 21


def test_two_threads_may_add_and_query(store):
    def add():
        for _ in range(20):
            store.add_many("points", world.points(5), schema())

    threads = [threading.Thread(target=add) for _ in range(3)]
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        assert len(store.query(schema())["x"]) % 5 == 0
    assert store.count("points") == 300


def test_other_files_are_refused(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_bytes(b"not a data base " * 100)
    with pytest.raises(StorageError, match="a working SQLite file"):
        ExampleStore(other)
    assert other.read_bytes() == b"not a data base " * 100
    with ExampleStore(tmp_path / "e.db"):
        pass
    newer = sqlite3.connect(tmp_path / "e.db")
    newer.execute("PRAGMA user_version = 3")
    newer.close()
    with pytest.raises(StorageError, match="expected schema 2, got 3"):
        ExampleStore(tmp_path / "e.db")


WRITER = """
import sys, numpy as np
from pathlib import Path
from covey.device.examples import ExampleStore
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
schema = ExampleSchema(fields=(FieldSpec(name="n", dtype="int64"),), query=Query(collection="c"))
store = ExampleStore(Path(sys.argv[1]))
for i in range(10**6):
    store.add_many("c", {"n": np.full(3, i)}, schema)
    print(i, flush=True)
"""


def test_a_process_that_is_killed_loses_nothing_that_was_stored(tmp_path):
    path = tmp_path / "e.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    said = [writer.stdout.readline() for _ in range(20)]
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read()
    writer.wait()
    writer.stdout.close()
    stored = int((b"".join(said) + rest).split()[-1])
    with ExampleStore(path) as s:
        numbers = s.query(schema([FieldSpec(name="n", dtype="int64")], collection="c"))["n"].tolist()
    # The last transaction may have been committed before its line was printed, but never by halves.
    assert len(numbers) % 3 == 0 and len(numbers) // 3 in (stored + 1, stored + 2)
    assert numbers == [i for i in range(len(numbers) // 3) for _ in range(3)]
