"""A mechanism end to end: contributions, integer segments, the opened sum, and what it costs."""

import dataclasses
import math

import numpy as np
import pytest

from covey.privacy.accounting import epsilon
from covey.privacy.adaptive import adapted_clip
from covey.privacy.contribution import contribute
from covey.privacy.mechanism import COUNT_UNITS, KINDS, Mechanism
from covey.types.errors import (
    ClipMissingError,
    DeltaError,
    NoiseError,
    PrivacyError,
    UpdateNotFiniteError,
)
from covey.types.segments import Segment, SegmentSum
from privacy.sources import seeded

DIM = 20_000
BASE = Mechanism(
    kind="skellam",
    clip=2.0,
    clip_low=2.0,
    clip_high=2.0,
    noise_multiplier=0.5,
    clip_units=1000,
    min_survivors=12,
    denominator=15,
    population=1000,
    delta=1e-5,
    num_rounds=10,
    colluders=4,
)


def changed(**fields):
    return dataclasses.replace(BASE, **fields)


def layout(mechanism, n_max=20, ring_bits=32):
    return [Segment("model", DIM, mechanism.coordinate_bound() + 1, n_max, ring_bits=ring_bits)]


def sum_of(mechanism, updates):
    total, parts = SegmentSum(layout(mechanism)), []
    for i, update in enumerate(updates):
        made = contribute(mechanism, {"model": update}, mechanism.clip, seeded(mechanism.kind, i)).vectors["model"]
        total.fold_reals({"model": made.astype(np.float32)})  # exact: below 2**24
        parts.append(made)
    return total.integers("model"), parts


@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize("survivors", [12, 17])
def test_the_opened_noise_is_what_was_promised(kind, survivors):
    mechanism = changed(kind=kind)
    sigma_local = mechanism.share_units
    # sigma = 0.5 * 1000 units, shared by 12 - 4 honest survivors of the worst group.
    assert sigma_local == pytest.approx(500 / math.sqrt(8))
    opened, parts = sum_of(mechanism, [np.zeros(DIM, np.float32)] * survivors)  # zeros round to zeros: noise is left
    # A sample variance of DIM draws deviates by sqrt((k - 1) / DIM) <= sqrt(2.1 / DIM) of itself; six of them.
    tolerance = 6 * math.sqrt(2.1 / DIM)
    assert opened.var() == pytest.approx(survivors * sigma_local**2, rel=tolerance)
    # Colluders tell the server their noise: what is left still hides a device as promised.
    left = opened - sum(parts[:4])
    assert left.var() == pytest.approx((survivors - 4) * sigma_local**2, rel=tolerance)
    assert (survivors - 4) * sigma_local**2 >= (mechanism.noise_multiplier * mechanism.clip_units) ** 2 * (1 - 1e-12)


@pytest.mark.parametrize("kind", ["discrete-gaussian", "skellam"])
def test_the_sum_is_that_of_the_clipped_updates(kind):
    mechanism = changed(kind=kind, noise_multiplier=0.02)
    rng = np.random.default_rng(3)
    updates = [(rng.standard_normal(DIM) * s).astype(np.float32) for s in (1e-3, 1e-2, 1.0, 50.0) * 3]
    opened, _ = sum_of(mechanism, updates)
    norms = [np.linalg.norm(u) for u in updates]
    wanted = sum(u * min(1.0, 2.0 / n) for u, n in zip(updates, norms, strict=True)) * 500
    error = opened - wanted
    # Noise of 12 shares and roundings of variance at most 1/4 each.
    assert error.var() == pytest.approx(12 * mechanism.share_units**2, rel=0.1, abs=12 / 4)
    assert abs(error.mean()) < 6 * math.sqrt((12 * mechanism.share_units**2 + 3) / DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_no_contribution_is_longer_than_what_is_paid_for(kind):
    colluders = 0 if kind in ("gaussian", "tree") else 4
    fields = {"max_participation": 10} if kind == "tree" else {}
    mechanism = changed(kind=kind, colluders=colluders, **fields)
    mechanism.check()
    from covey.privacy.rounding import l2_bound

    rng = np.random.default_rng(1)
    central = changed(kind="gaussian", colluders=0)  # clips and rounds as the others, and adds no noise on the device
    for update in (rng.standard_normal(DIM), 1e6 * np.eye(1, DIM)[0], np.full(DIM, 3.0)):
        units = contribute(central, {"m": update.astype(np.float32)}, 2.0, seeded(kind)).vectors["m"]
        assert (units**2).sum() <= l2_bound(1000, DIM) ** 2


def test_parts_are_clipped_together():
    mechanism = changed(kind="gaussian", colluders=0)
    parts = {"a": np.full(100, 7.0, np.float32), "b": np.full(300, -7.0, np.float32)}
    out = contribute(mechanism, parts, 2.0, seeded("parts")).vectors
    assert list(out) == ["a", "b"]
    length = math.sqrt(sum(float((v**2).sum()) for v in out.values()))
    assert length == pytest.approx(1000, rel=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "discrete-gaussian", "skellam"])
def test_the_clip_follows_its_quantile(kind):
    colluders = 0 if kind == "gaussian" else 4
    mechanism = changed(
        kind=kind, colluders=colluders, quantile=0.8, count_noise=1.0, clip_low=1e-3, clip_high=1e3, denominator=15
    )
    mechanism.check()
    norms, clip = np.linspace(0.5, 8.0, 15), 2.0
    for step in range(120):
        count = 0
        for i, norm in enumerate(norms):
            made = contribute(mechanism, {"m": np.array([norm, 0.0], np.float32)}, clip, seeded(kind, step, i))
            count += made.count
        if kind == "gaussian":
            count += int(mechanism.count_noise_sampler().draw(1, seeded("server", step))[0])
        clip = adapted_clip(mechanism, clip, count)
    # Twelve of fifteen are at most 6.4. The noise of one device's weight or two moves the clip by some 0.2 * 2 / 15.
    assert 5.0 < clip < 8.0


def test_the_clip_stays_within_its_bounds():
    mechanism = changed(quantile=0.5, count_noise=1.0, clip_low=1.9, clip_high=2.1)
    assert adapted_clip(mechanism, 2.0, -(10**9)) == 2.1
    assert adapted_clip(mechanism, 2.0, 10**9) == 1.9
    # All within the clip, by hand: C exp(-0.2 (1 - 0.5)).
    wide = changed(quantile=0.5, count_noise=1.0, clip_low=0.1, clip_high=10.0)
    assert adapted_clip(wide, 2.0, 15 * COUNT_UNITS) == pytest.approx(2.0 * math.exp(-0.1))


def test_the_count_takes_its_part_of_the_budget():
    # 1905.03871, Theorem 1: z_Δ = (z^-2 - (2 σ_b)^-2)^-1/2; together they cost what z alone would.
    mechanism = changed(kind="gaussian", colluders=0, quantile=0.5, count_noise=2.0, clip_low=1.0, clip_units=1 << 16)
    assert mechanism.model_multiplier == pytest.approx((0.5**-2 - 4.0**-2) ** -0.5)
    alone = changed(kind="gaussian", colluders=0, clip_units=1 << 16)
    both, one = (epsilon(m.spent(DIM, 10), 1e-5) for m in (mechanism, alone))
    assert both == pytest.approx(one, rel=1e-3)


def test_central_gaussian_costs_what_the_analytic_gaussian_costs():
    import dp_accounting

    mechanism = changed(kind="gaussian", colluders=0, clip_units=1 << 16)
    exact = dp_accounting.get_epsilon_gaussian(0.5 / math.sqrt(10), 1e-5)
    # Rounding 20,000 coordinates lengthens a contribution of 65,536 units by less than 1e-5 of itself.
    assert exact < epsilon(mechanism.spent(DIM, 10), 1e-5) < exact * (1 + 1e-4)


def test_a_tree_is_paid_for_whole():
    tree = changed(kind="tree", colluders=0, max_participation=1, num_rounds=8)
    assert tree.spent(DIM, 1) == tree.spent(DIM, 8) != tree.spent(DIM, 9)


def test_more_colluders_or_fewer_survivors_mean_more_noise_of_each():
    assert changed(colluders=8).share_units > BASE.share_units
    assert changed(min_survivors=20).share_units < BASE.share_units


@pytest.mark.parametrize(
    "fields, kind",
    [
        ({"clip": math.nan}, ClipMissingError),
        ({"clip": 0.0, "clip_low": 0.0, "clip_high": 0.0}, ClipMissingError),
        ({"delta": 1e-3}, DeltaError),
        ({"delta": 0.0}, DeltaError),
        ({"noise_multiplier": 0.0}, NoiseError),
        ({"noise_multiplier": math.inf}, NoiseError),
        ({"noise_multiplier": 0.005}, NoiseError),  # 5 units over 8 shares: 1.8 each
        ({"clip_units": 10}, NoiseError),
        ({"kind": "gaussian", "colluders": 0, "clip_units": 20}, NoiseError),
        ({"quantile": 0.5, "count_noise": 0.25, "clip_low": 1.0}, NoiseError),
        ({"quantile": 1.0, "count_noise": 2.0, "clip_low": 1.0}, PrivacyError),
        ({"kind": "laplace"}, PrivacyError),
        ({"colluders": 12}, PrivacyError),
        ({"kind": "gaussian"}, PrivacyError),  # colluders cannot take away the server's noise
        ({"clip_low": 3.0}, PrivacyError),
        ({"clip_low": 1.0}, PrivacyError),  # a fixed clip with room to move
        ({"sampling": "shuffled"}, PrivacyError),
        ({"kind": "tree", "colluders": 0, "quantile": 0.5, "count_noise": 2.0, "clip_low": 1.0}, PrivacyError),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(fields, kind):
    BASE.check()
    with pytest.raises(kind):
        changed(**fields).check()


def test_sigma_local_under_two_units_says_what_to_do():
    with pytest.raises(NoiseError, match="at least 2 integer units") as caught:
        changed(noise_multiplier=0.005).check()
    assert "more units" in caught.value.hint


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_updates_that_are_not_finite_do_not_leave_the_device(bad):
    with pytest.raises(UpdateNotFiniteError):
        contribute(BASE, {"m": np.array([1.0, bad], np.float32)}, 2.0, seeded("bad"))


def test_a_clamp_bounds_a_coordinate_before_its_noise_and_only_shortens():
    """Units of 1000, 20,000 coordinates: four deviations are ceil(4 * 1000 / sqrt(20000)) = 29 units."""
    limit = BASE.limit(DIM, 4.0)
    assert limit == 29 and BASE.limit(4, 4.0) == 1001  # never more than what rounding makes of the clip
    assert BASE.coordinate_bound(limit) == 29 + BASE.noise().bound
    quiet = dataclasses.replace(BASE, kind="gaussian")
    spiked = np.zeros(DIM, np.float32)
    spiked[0], spiked[1:] = 1.5, np.random.default_rng(1).standard_normal(DIM - 1) * 0.005
    free, clamped = (
        contribute(quiet, {"m": spiked}, 2.0, seeded("clamp"), limit=at).vectors["m"] for at in (None, limit)
    )
    assert free[0] > 700 and clamped[0] == limit == np.abs(clamped).max()
    assert (clamped == np.clip(free, -limit, limit)).all()  # the same rounding, before the clamp
    assert quiet.coordinate_bound(limit) == limit
    # Of the noise nothing is cut: it is added after the clamp.
    drawn = contribute(BASE, {"m": np.zeros(DIM, np.float32)}, 2.0, seeded("tails"), limit=1).vectors["m"]
    assert np.abs(drawn).max() > 3 * BASE.share_units
