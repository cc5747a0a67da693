import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from covey.server.promotion import REASONS, Comparison, Evidence, ReleaseSettings, Verdict, decide, student_quantile
from covey.types.errors import UsageError

SETTINGS = ReleaseSettings(min_cohort=50, min_devices=10, margin=0.01)
GOOD = Evidence(finite=True, cohort=100, within_budget=True, first=False, comparison=Comparison(100, -0.05, 0.003))


def verdict(**fields):
    return decide(dataclasses.replace(GOOD, **fields), SETTINGS)


@pytest.mark.parametrize("p", [0.9, 0.95, 0.99])
def test_the_quantile_is_students(p):
    for degrees, tolerance in ((2, 2.3e-2), (3, 4e-3), (5, 4e-4), (9, 3e-5), (29, 1e-7), (1000, 1e-12)):
        assert student_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=tolerance), degrees
    if p <= 0.95:
        assert student_quantile(p, 2) == pytest.approx(stats.t.ppf(p, 2), rel=3e-3)
        assert student_quantile(p, 5) == pytest.approx(stats.t.ppf(p, 5), rel=4e-5)


def compared(d: np.ndarray) -> Comparison:
    return Comparison(len(d), float(d.mean()), float((d * d).mean()))


@given(st.lists(st.floats(-4, 4), min_size=10, max_size=50), st.floats(0.001, 1))
def test_the_decision_is_that_of_the_one_sided_paired_t_test(values, margin):
    d = np.array(values)
    if d.std() < 1e-6 * (1 + abs(d).max()):
        return  # no spread: the reference divides by zero
    settings = dataclasses.replace(SETTINGS, margin=margin)
    got = decide(dataclasses.replace(GOOD, comparison=compared(d)), settings)
    p_value = stats.ttest_1samp(d, margin, alternative="less").pvalue
    if abs(p_value - 0.05) > 1e-3:  # the expansion of the quantile, and cancellation in the variance
        assert (got.reason == "not_worse") == (p_value < 0.05)


def test_the_level_is_kept_at_the_margin_itself():
    """Of candidates that are worse by exactly the margin, 5 % are let in, within four standard deviations."""
    rng, times, n = np.random.default_rng(1), 4000, 30
    let_in = sum(
        decide(dataclasses.replace(GOOD, comparison=compared(rng.normal(SETTINGS.margin, 0.1, n))), SETTINGS).promoted
        for _ in range(times)
    )
    assert abs(let_in / times - 0.05) < 4 * math.sqrt(0.05 * 0.95 / times)


def test_models_that_do_not_differ_are_let_in_and_a_clearly_worse_one_is_not():
    assert verdict(comparison=Comparison(10, 0.0, 0.0)) == Verdict("not_worse", 0.0)
    worse = verdict(comparison=Comparison(1000, 0.2, 0.05))
    assert (worse.reason, worse.promoted) == ("not_shown_not_worse", False)
    assert worse.limit > 0.2


def test_few_devices_never_let_a_candidate_in():
    better = compared(np.full(9, -1.0))
    assert verdict(comparison=better).reason == "too_few_devices"
    assert verdict(comparison=Comparison(0, 0.0, 0.0)) == Verdict("too_few_devices", math.inf)
    disagree = compared(np.array([-1.0, 1.2] * 10))
    assert verdict(comparison=disagree).reason == "not_shown_not_worse"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"finite": False}, "not_finite"),
        ({"cohort": 49}, "cohort_too_small"),
        ({"within_budget": False}, "privacy_budget"),
        ({"comparison": None, "missing": "no_evaluation_under_privacy"}, "no_evaluation_under_privacy"),
        ({"comparison": Comparison(100, math.nan, 1.0)}, "not_shown_not_worse"),
        ({"comparison": Comparison(100, 0.0, math.inf)}, "not_shown_not_worse"),
    ],
)
def test_whatever_is_missing_keeps_it_out_with_its_reason(fields, reason):
    assert verdict(**fields).reason == reason and not verdict(**fields).promoted
    # What the round itself lacks keeps even the first release out.
    first = verdict(**fields, first=True)
    assert first.promoted == (reason not in ("not_finite", "cohort_too_small", "privacy_budget"))


def test_the_first_release_has_nothing_to_compare_with():
    assert verdict(first=True, comparison=None) == Verdict("first")


def test_without_evaluation_the_round_alone_decides():
    off = dataclasses.replace(SETTINGS, evaluate=False)
    assert decide(dataclasses.replace(GOOD, comparison=None), off) == Verdict("evaluation_off")
    assert decide(dataclasses.replace(GOOD, comparison=None, cohort=1), off) == Verdict("cohort_too_small")


def test_a_comparison_that_is_still_to_come_is_waited_for():
    assert verdict(comparison=None) is None


def test_accuracy_points_up_and_loss_down():
    means = {"compared": 20.0, "difference": 0.25, "difference_squared": 0.1, "loss": 1.0}
    assert Comparison.of("loss", means) == Comparison(20, 0.25, 0.1)
    assert Comparison.of("correct", means) == Comparison(20, -0.25, 0.1)
    assert Comparison.of("loss", {"loss": 1.0}) == Comparison(0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("every", -1), ("min_cohort", -1), ("min_devices", 2), ("margin", 0.0), ("margin", math.inf), ("margin", math.nan),
     ("confidence", 0.5), ("confidence", 1.0), ("attempts", 0)],
)  # fmt: skip
def test_settings_that_decide_nothing_are_refused(name, value):
    with pytest.raises(UsageError, match=f"release: {name}"):
        ReleaseSettings(**{name: value})


def test_every_reason_is_documented_and_no_other():
    text = (Path(__file__).parents[2] / "docs" / "releases.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(REASONS)
