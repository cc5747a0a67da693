"""Noise of devices under a rotation and a ring: the variance that was promised, no bias, any dropout."""

import math

import numpy as np
import pytest
from device import world
from device.test_private import private_plan, source
from privacy.sources import seeded
from scipy import stats

from covey.device.private import private_segments
from covey.device.trainer import LocalResult
from covey.plans.manifest import SecureTerms
from covey.plans.plan import unpack_plan
from covey.server.messages import public_seed
from covey.server.private import PrivateSums
from covey.types.errors import LayoutError
from covey.types.segments import HEADER, SegmentSum

from . import parts
from .test_private import SETTINGS, private_sums, stored
from .test_secure import Round

KINDS = ["discrete-gaussian", "skellam"]
WHOLE, HALF = "hd|ring:24:13:clip:20", "hd|subsample:0.5|ring:24:13:clip:20"
SURVIVORS = 4  # the fewest, see SETTING


def contribution(manifest, attempt: str, update, *label):
    """Return what a device makes of an update, by its own code."""
    header = np.ones(manifest.layout(0)[0].length)
    result = LocalResult({HEADER: header, "model": update.copy()}, 1.0, {}, 1, 1)
    told = world.assignment(public_seed=public_seed(attempt))
    return private_segments(result, manifest, told, seeded(*label))


def total_of(manifest, attempt: str, updates, label=0):
    total = SegmentSum(manifest.layout(0))
    for i, update in enumerate(updates):
        total.fold_reals(contribution(manifest, attempt, update, label, i))
    return total


def zeros(count):
    return [np.zeros(parts.LENGTH, np.float32)] * count


def within(values, variance: float) -> None:
    """Assert a variance of a mean of zero: a chi-square test whose chance to fail wrongly is 2e-6."""
    square = float((np.asarray(values, float) ** 2).sum()) / variance
    assert stats.chi2.ppf(1e-6, len(values)) < square < stats.chi2.isf(1e-6, len(values))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", [WHOLE, HALF])
@pytest.mark.parametrize("survivors", [SURVIVORS, 13])
def test_the_opened_sum_carries_the_noise_of_its_survivors(kind, codec, survivors):
    """In the rotated domain, in integers: |survivors| * sigma_local²; and never less than what was promised."""
    plan = private_plan(f"{kind}:clip=2,noise=1.5,colluders=1", codec)
    manifest = unpack_plan(plan).manifest
    sums, _ = private_sums(plan, stored(plan))
    values = [
        x for i in range(60) for x in total_of(manifest, f"a{i}", zeros(survivors), label=i).integers("model").tolist()
    ]
    share = sums.mechanism.share_units
    # Zeros round to zeros: all that is in the sum is noise. Its table's variance is sigma² to 1e-12.
    within(values, survivors * share**2)
    assert (survivors - 1) * share**2 >= sums.mechanism.sigma_units**2 * (1 - 1e-12)  # the colluder's share taken away


@pytest.mark.parametrize("codec", [WHOLE, HALF])
def test_as_reals_the_noise_is_the_multiplier_times_the_clip_whatever_part_is_sent(codec):
    """Half of the coordinates carry noise of a clip sqrt(1/2) as long, and are doubled: per coordinate of the model,
    which is a sum of all that was sent with weights ±1/sqrt(width), that is (z clip)² times survivors over shares."""
    plan = private_plan("skellam:clip=2,noise=1.5", codec)
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    values = []
    for i in range(60):
        aggregate = sums.open(storage, total_of(manifest, f"a{i}", zeros(6), label=i), 0, i + 1, f"a{i}")
        flat = np.concatenate([v.reshape(-1) for v in aggregate.segments["model"].values()])
        # With half of them sent, the eight coordinates are made of four draws: sum their squares and divide.
        values.append(float((flat**2).sum()))
    degrees = 8 if codec is WHOLE else 4
    square = sum(values) * degrees / parts.LENGTH / (3.0**2 * 6 / SURVIVORS)
    assert stats.chi2.ppf(1e-6, 60 * degrees) < square < stats.chi2.isf(1e-6, 60 * degrees)


@pytest.mark.parametrize("kind", ["gaussian", *KINDS])
@pytest.mark.parametrize("codec", [WHOLE, HALF])
def test_the_opened_sum_is_unbiased_where_nothing_is_clipped(kind, codec):
    """6 standard errors in each coordinate, over rotations, positions, roundings and noise, and 1e-5 for float32."""
    plan = private_plan(f"{kind}:clip=4,noise=0.02,units=2048", codec)
    storage = stored(plan)
    sums, manifest = private_sums(plan, storage)
    updates = [np.random.default_rng(i).standard_normal(parts.LENGTH).astype(np.float32) * 0.5 for i in range(7)]
    assert max(np.linalg.norm(u) for u in updates) < 4 * math.sqrt(0.5)
    draws = []
    for i in range(120):
        aggregate = sums.open(storage, total_of(manifest, f"a{i}", updates, label=i), 0, i + 1, f"a{i}")
        assert (aggregate.num_devices, aggregate.weight, aggregate.metrics) == (7, 10.0, {})
        draws.append(np.concatenate([v.reshape(-1) for v in aggregate.segments["model"].values()]))
    want = np.sum(updates, axis=0, dtype=np.float64)
    found = np.array(draws)
    allowed = 6 * found.std(axis=0) / math.sqrt(len(draws)) + 1e-5 * np.linalg.norm(want)
    assert (np.abs(found.mean(axis=0) - want) <= allowed).all()
    if codec is WHOLE:  # and each of them is near: noise of .02 * 4 at most twice over, and rounding
        assert np.abs(found - want).max() < 7 * 0.08 * math.sqrt(2)


def test_a_round_is_charged_for_what_it_sends():
    whole, half = (private_plan("skellam:clip=2,noise=1,units=64", c) for c in (WHOLE, HALF))
    costs = []
    for plan in (whole, half):
        storage = stored(plan)
        sums, manifest = private_sums(plan, storage)
        sums.open(storage, total_of(manifest, "a", zeros(4)), 0, 1, "a")
        (charge,) = storage.privacy_charges(parts.POPULATION)
        costs.append((sums.mechanism.losses(manifest.num_opened), charge.loss))
        assert manifest.num_opened == (8 if plan is whole else 4)
    # Fewer coordinates are rounded, and nothing else is gained: no amplification by the part that is sent.
    (first, a), (second, b) = costs
    assert a != b and 0 < first[0].curve[0] - second[0].curve[0] < 0.2 * first[0].curve[0]


class NoisedRound(Round):
    """Devices of a secure round whose contributions are those of their own privacy code."""

    def contribution(self, index):
        result = LocalResult({HEADER: np.ones(6), "model": update(index)}, 1.0, {}, 1, 1)
        return private_segments(result, self.manifest, self.offer, seeded("secure", index))


def update(index):
    return np.random.default_rng(index).standard_normal(parts.LENGTH).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gone", [{}, {"s0": "mask"}, {"s1": "share", "s4": "unmask"}, {"s2": "mask", "s3": "unmask"}])
def test_under_masks_any_dropout_gives_the_survivors_sum_bit_for_bit(kind, gone):
    secure = SecureTerms(group_size=8, dropout=0.25)
    plan = private_plan(f"{kind}:clip=8,noise=0.05", HALF, secure=secure)
    r = NoisedRound(count=8, plan_data=plan)
    (segment,) = r.manifest.phases[0].segments
    assert r.manifest.layout(0)[1].ring_bits == 24 and segment.ring.num_values == 4
    closed = r.play(gone)
    counted = [s for s in r.sessions if gone.get(s) not in ("advertise", "share", "mask")]
    expected = r.expected(counted)
    assert closed.total.num_folded == len(counted)
    assert (closed.total.integers("model") == expected.integers("model")).all()
    storage = stored(plan)
    sums = PrivateSums(storage.tasks(parts.POPULATION)[0], r.manifest, source())
    opened = sums.read(closed.total, 0, "a")
    assert opened.num_devices == len(counted) and opened.weight == SETTINGS.goal


def test_more_devices_than_the_ring_has_room_for_are_never_summed():
    plan = private_plan("skellam:clip=2,noise=1", "hd|ring:24:13:clip")
    manifest = unpack_plan(plan).manifest
    with pytest.raises(LayoutError, match="at most 13 contributions"):
        total_of(manifest, "a", zeros(14))
