import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.privacy.clip import check_clip, clipped, joint_norm
from covey.privacy.rounding import BETA, l1_bound, l2_bound, round_conditionally
from covey.types.errors import ClipMissingError, UpdateNotFiniteError, UpdateRangeError
from privacy.sources import seeded

FLOATS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40)


def exact_square(vectors):
    return sum(Fraction(float(x)) ** 2 for v in vectors for x in v)


@given(FLOATS, FLOATS, st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_the_result_is_never_longer_than_the_clip(a, b, clip):
    vectors = [np.array(a, np.float32), np.array(b, np.float32)]
    out, within = clipped(vectors, clip)
    assert exact_square(out) <= Fraction(clip) ** 2
    if within and exact_square(vectors) <= Fraction(clip * (1 - 2**-22)) ** 2:
        assert all((x == y).all() for x, y in zip(out, vectors, strict=True))
    if not within:  # scaled, not cut: the direction stays, and no more is lost than three float32 roundings
        assert joint_norm(out) >= clip * (1 - 2.0**-20)


def test_a_zero_vector_stays_zero():
    out, within = clipped([np.zeros(5, np.float32)], 1.0)
    assert within
    assert (out[0] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_vector_that_is_not_finite_is_refused(bad):
    vector = np.ones(70_000, np.float32)
    vector[66_000] = bad
    with pytest.raises(UpdateNotFiniteError, match="finite"):
        clipped([vector], 1.0)


@pytest.mark.parametrize("bad", [None, 0.0, -1.0, math.nan, math.inf])
def test_noise_needs_a_clip(bad):
    with pytest.raises(ClipMissingError, match="length above 0"):
        check_clip(bad)


@pytest.mark.parametrize("dim", [1, 2, 33, 4097])
@pytest.mark.parametrize("units", [1.0, 7.5, 300.0])
def test_rounding_keeps_its_bound(dim, units):
    source = seeded("bound", dim, units)
    rng = np.random.default_rng(dim)
    for vector in (np.ones(dim), np.eye(1, dim)[0], rng.standard_normal(dim), np.full(dim, 1e-9)):
        x = vector * (units / np.linalg.norm(vector)) * (1 - 1e-12)
        (y,) = round_conditionally([x], 1.0, units, source)
        assert y @ y.astype(np.int64) <= l2_bound(units, dim) ** 2
        assert np.abs(y).sum() <= l1_bound(l2_bound(units, dim), dim)
        assert np.abs(y - x).max() < 1


def test_rounding_is_unbiased_where_its_condition_never_binds():
    # With 16 coordinates of 2.9 units the longest rounding, all up, is within the bound: the condition never binds.
    x, tries = np.full(16, 2.9), 4000
    assert l2_bound(float(np.linalg.norm(x)), 16) ** 2 >= 16 * 3**2
    source = seeded("unbiased")
    total = sum(round_conditionally([x], 1.0, float(np.linalg.norm(x)), source)[0].astype(float) for _ in range(tries))
    # A rounded coordinate is 2 or 3, of variance .9 * .1; five deviations of the mean of 16 * 4000.
    assert abs(total.mean() / tries - 2.9) < 5 * math.sqrt(0.09 / (16 * tries))


def test_the_bound_is_that_of_the_paper():
    # Proposition 22 by hand for c = 10, d = 100, β = e^-1/2: √(2 ln(1/β)) = 1, √(100 + 25 + 15) < 10 + 10.
    assert pytest.approx(math.sqrt(140)) == l2_bound(10, 100)
    assert pytest.approx(math.exp(-0.5)) == BETA
    assert l2_bound(0.1, 1) == pytest.approx(math.sqrt(0.01 + 0.25 + 0.6))


def test_a_vector_that_was_not_clipped_is_refused():
    with pytest.raises(UpdateRangeError, match="at most 3 units"):
        round_conditionally([np.full(4, 50.0)], 1.0, 3.0, seeded("long"))
    with pytest.raises(UpdateRangeError, match="magnitudes"):
        round_conditionally([np.full(4, 1e12)], 1.0, 3.0, seeded("long"))
