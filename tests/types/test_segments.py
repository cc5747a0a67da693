import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.types.errors import (
    LayoutError,
    UpdateFormatError,
    UpdateNotFiniteError,
    UpdateRangeError,
)
from covey.types.segments import HEADER, Segment, SegmentSum, header_segment, real_segment, to_fixed_point

LENGTH, N_MAX, BOUND = 5, 8, 4.0


def layout():
    return (header_segment(2, N_MAX), real_segment("model", LENGTH, BOUND, N_MAX))


def contribution(rng):
    return {
        HEADER: np.array([1.0, rng.integers(1, 9), rng.random(), rng.random()]),
        "model": rng.uniform(-BOUND, BOUND, LENGTH).astype(np.float32) * np.float32(0.99),
    }


def folded(parts):
    total = SegmentSum(layout())
    for part in parts:
        total.fold_reals(part)
    return total


def bits(total):
    return [total.integers(s.name).tobytes() for s in total.segments] + [total.num_folded]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.permutations(range(N_MAX)), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_any_order_and_any_shards_give_the_same_bits(seed, order, shard_of):
    rng = np.random.default_rng(seed)
    parts = [contribution(rng) for _ in range(N_MAX)]
    straight = folded(parts)
    shards = [folded([parts[i] for i in order if shard_of[i] == s]) for s in range(4)]
    merged = SegmentSum(layout())
    for shard in shards:
        merged.merge(shard)
    assert bits(merged) == bits(straight)


def test_the_empty_sum_is_neutral():
    total, rng = SegmentSum(layout()), np.random.default_rng(0)
    part = folded([contribution(rng)])
    before = bits(part)
    part.merge(total)
    assert bits(part) == before


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, N_MAX))
def test_the_sum_is_right_to_half_a_step_for_each_contribution(seed, count):
    rng = np.random.default_rng(seed)
    parts = [contribution(rng) for _ in range(count)]
    total = folded(parts)
    exact = sum(p["model"].astype(np.float64) for p in parts)
    half_step = 0.5 * 2.0 ** -layout()[1].fraction_bits
    assert np.abs(total.reals("model") - exact).max() <= count * half_step + 1e-15


def test_a_full_cohort_at_the_bound_does_not_wrap():
    segment = real_segment("model", LENGTH, BOUND, N_MAX)
    total = SegmentSum((segment,))
    for _ in range(N_MAX):
        total.fold_reals({"model": np.full(LENGTH, -BOUND)})
    assert np.array_equal(total.reals("model"), np.full(LENGTH, -BOUND * N_MAX))
    with pytest.raises(LayoutError, match="one more"):
        total.fold_reals({"model": np.zeros(LENGTH)})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p: p["model"].__setitem__(2, np.nan), UpdateNotFiniteError),
        (lambda p: p["model"].__setitem__(0, -np.inf), UpdateNotFiniteError),
        (lambda p: p["model"].__setitem__(4, 4.5), UpdateRangeError),
        (lambda p: p.__setitem__("model", p["model"][:-1]), UpdateFormatError),
        (lambda p: p.pop("model"), UpdateFormatError),
        (lambda p: p.__setitem__("more", p["model"]), UpdateFormatError),
    ],
)
def test_a_contribution_that_fails_a_check_changes_no_bit(change, error):
    rng = np.random.default_rng(1)
    total = folded([contribution(rng)])
    before, bad = bits(total), contribution(rng)
    change(bad)
    with pytest.raises(error):
        total.fold_reals(bad)
    assert bits(total) == before


def test_clear_leaves_nothing():
    total = folded([contribution(np.random.default_rng(0))])
    total.clear()
    assert bits(total) == bits(SegmentSum(layout()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bound": 1 << 40, "n_max": 1 << 24},  # the sum could wrap
        {"ring_bits": 16, "bound": 4096, "n_max": 8},  # exactly 2**15: one too many
        {"ring_bits": 7},
        {"ring_bits": 48},
        {"length": 0},
        {"bound": 0},
        {"n_max": 0},
    ],
)
def test_a_segment_whose_sum_could_wrap_cannot_be_made(wrong):
    good = {"name": "s", "length": 3, "bound": 1, "n_max": 1}
    Segment(**good)
    with pytest.raises(LayoutError):
        Segment(**{**good, **wrong})


def test_other_layouts_do_not_merge():
    with pytest.raises(LayoutError):
        SegmentSum(layout()).merge(SegmentSum(layout()[:1]))


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e5), st.integers(1, 10_000))
def test_fixed_point_keeps_as_many_bits_as_fit(bound, n_max):
    segment = real_segment("m", 1, bound, n_max)
    assert n_max * segment.bound < 2**63
    finer = segment.fraction_bits + 1
    assert segment.fraction_bits == 40 or n_max * (int(bound * 2**finer) + 1) >= 1 << 62


def test_rounding_is_to_nearest_even():
    segment = Segment("s", 4, 100, 1, fraction_bits=1)
    assert to_fixed_point(np.array([0.25, 0.75, -0.25, 1.1]), segment).tolist() == [0, 2, 0, 2]
