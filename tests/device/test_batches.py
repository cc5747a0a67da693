"""Batches: every epoch sees every example once, whatever the sizes; padding is masked; chunks change nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.device.batches import checked_examples, make_chunks, num_distinct, num_steps, padded_batches
from covey.plans.manifest import FieldSpec, Phase
from covey.types.errors import ExampleError, TooFewExamplesError

SEED = bytes(range(32))


def phase(batch_size=3, epochs=2, max_steps=10**6, chunk_steps=4, graph="train") -> Phase:
    return Phase(
        name="p", graph=graph, state=(), shared=(), segments=(), batch_size=batch_size, epochs=epochs,
        max_steps=max_steps, chunk_steps=chunk_steps,
    )  # fmt: skip


phases = st.builds(
    phase,
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 30),
    st.integers(1, 9),
    st.sampled_from(["train", "gradient"]),
)


def steps_of(count: int, p: Phase) -> tuple[np.ndarray, np.ndarray]:
    """Return all steps of all chunks: example numbers [steps, B] and mask."""
    chunks = list(make_chunks({"i": np.arange(count)}, p, seed=SEED))
    return np.concatenate([c.batch["i"] for c in chunks]), np.concatenate([c.mask for c in chunks])


@given(st.integers(1, 25), phases)
def test_every_epoch_sees_every_example_exactly_once(count, p):
    rows, mask = steps_of(count, p)
    assert len(rows) == num_steps(count, p) <= p.max_steps
    per_epoch = -(-count // p.batch_size)
    for start in range(0, len(rows), per_epoch):
        seen = rows[start : start + per_epoch][mask[start : start + per_epoch]]
        assert len(set(seen.tolist())) == len(seen)
        if len(rows) >= start + per_epoch:
            assert sorted(seen) == list(range(count))
    assert num_distinct(count, p) == len(set(rows[mask].tolist()))


@given(st.integers(1, 25), phases, st.integers(1, 9))
def test_where_steps_are_cut_into_chunks_changes_nothing(count, p, chunk_steps):
    other = phase(p.batch_size, p.epochs, p.max_steps, chunk_steps, p.graph)
    for a, b in zip(steps_of(count, p), steps_of(count, other), strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.integers(1, 25), phases)
def test_chunks_hold_at_most_chunk_steps_and_full_batches(count, p):
    for chunk in make_chunks({"i": np.arange(count)}, p, seed=SEED):
        assert 1 <= chunk.num_steps <= p.chunk_steps
        assert chunk.batch["i"].shape == chunk.mask.shape == (chunk.num_steps, p.batch_size)
        assert chunk.mask.any(axis=1).all()


def test_padding_repeats_the_epochs_first_examples():
    rows, mask = steps_of(4, phase(batch_size=3, epochs=1))
    flat = rows.reshape(-1)
    assert mask.reshape(-1).tolist() == [True] * 4 + [False] * 2
    assert flat[4:].tolist() == flat[:2].tolist()


def test_epochs_are_shuffled_afresh_and_gradients_are_not():
    rows, _ = steps_of(20, phase(batch_size=20, epochs=2))
    assert rows[0].tolist() != rows[1].tolist()
    rows, _ = steps_of(20, phase(batch_size=20, epochs=2, graph="gradient"))
    assert rows.tolist() == [list(range(20))]


def test_the_seed_decides_the_order():
    p = phase(batch_size=20, epochs=1)
    a, b = (next(iter(make_chunks({"i": np.arange(20)}, p, seed=s))).batch["i"] for s in (SEED, bytes(32)))
    assert a.tolist() != b.tolist()
    np.testing.assert_array_equal(a, steps_of(20, p)[0])


def test_evaluation_batches_cover_every_example_once_in_order():
    chunks = list(padded_batches({"i": np.arange(7)}, 3))
    seen = np.concatenate([c.batch["i"][c.mask] for c in chunks])
    assert seen.tolist() == list(range(7))
    assert all(c.mask.shape == (1, 3) for c in chunks)


FIELDS = (FieldSpec(name="x", shape=(2,)), FieldSpec(name="y", dtype="int32", num_values=3))


def sample(count=5):
    return {"x": np.zeros((count, 2), np.float32), "y": np.zeros(count, np.int32)}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x": np.zeros((5, 3), np.float32)}, r"field 'x': expected float32 \[n, 2\], got float32 \[5, 3\]"),
        ({"x": np.zeros(5, np.float32)}, r"field 'x': expected float32 \[n, 2\], got float32 \[5\]"),
        ({"x": np.zeros((5, 2))}, r"field 'x': expected float32 \[n, 2\], got float64 \[5, 2\]"),
        ({"x": np.zeros((), np.float32)}, r"field 'x': .* got float32 \[\]"),
        ({"y": np.full(5, 3, np.int32)}, "field 'y': expected integers from 0 to 2"),
        ({"y": np.full(5, -1, np.int32)}, "field 'y': expected integers from 0 to 2"),
        ({"y": np.zeros(4, np.int32)}, "as many values of every field, got x: 5, y: 4"),
    ],
)
def test_examples_of_another_shape_dtype_or_range_are_refused(replaced, message):
    with pytest.raises(ExampleError, match=message):
        checked_examples({**sample(), **replaced}, FIELDS)


def test_a_missing_field_is_named():
    with pytest.raises(ExampleError, match=r"field 'y': .*no such field"):
        checked_examples({"x": sample()["x"]}, FIELDS)


def test_too_few_examples_are_refused():
    with pytest.raises(TooFewExamplesError, match="expected at least 6, got 5"):
        checked_examples(sample(), FIELDS, at_least=6)
    with pytest.raises(TooFewExamplesError, match="expected at least 1, got none"):
        checked_examples(sample(0), FIELDS)


def test_only_the_first_examples_are_used_and_nothing_is_copied():
    given_ = sample(9)
    out = checked_examples({**given_, "unused": np.zeros(9)}, FIELDS, at_most=4)
    assert set(out) == {"x", "y"} and len(out["x"]) == 4
    assert np.shares_memory(out["x"], given_["x"])
