"""Samplers against exact probabilities: computed here with mpmath at 60 digits, by other formulas than the tables'."""

import itertools
import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from scipy import stats

from covey.privacy.discrete_gaussian import DiscreteGaussian
from covey.privacy.sampler import TableSampler
from covey.privacy.skellam import Skellam
from covey.types.errors import NoiseError
from privacy.sources import Words, seeded

mpmath.mp.dps = 60
SIGMAS = [0.5, 2.0, 3.7, 30.0, 200.25]
LEVEL = 1e-4  # of each goodness-of-fit test: with fixed seeds a false alarm would show once, when a seed is chosen
DRAWS = 1_000_000


def gaussian(sigma, k):
    """P[X = k] of the discrete Gaussian, normalised by the Jacobi theta function."""
    s2 = 2 * mpmath.mpf(sigma) ** 2
    return mpmath.exp(-(mpmath.mpf(k) ** 2) / s2) / mpmath.jtheta(3, 0, mpmath.exp(-1 / s2))


def skellam(sigma, k):
    mu = mpmath.mpf(sigma) ** 2
    return mpmath.exp(-mu) * mpmath.besseli(abs(k), mu, maxterms=10**6)


CASES = [(DiscreteGaussian, gaussian, s) for s in SIGMAS] + [(Skellam, skellam, s) for s in SIGMAS]


@pytest.mark.parametrize("kind, exact, sigma", CASES)
def test_tables_hold_the_exact_probabilities(kind, exact, sigma):
    noise = kind(sigma)
    thresholds = noise._table._thresholds
    assert thresholds == sorted(thresholds)
    edges = [0, *thresholds, 1 << 128]
    bound = noise.bound
    # Both ends of an interval are rounded by less than one unit, and mass below 2**-128 is missing from all.
    tolerance = mpmath.mpf(2) ** -126
    step = max(1, bound // (60 if sigma < 100 else 6))  # mpmath takes its time
    for k in [*range(-bound, bound + 1, step), 0, 1, -1]:
        table = mpmath.mpf(edges[k + bound + 1] - edges[k + bound]) / mpmath.mpf(2) ** 128
        assert abs(table - exact(sigma, k)) < tolerance, k
    # Beyond the table each probability is below a constant times its predecessor: a geometric sum bounds the rest.
    first, second = exact(sigma, bound + 1), exact(sigma, bound + 2)
    assert 2 * first / (1 - second / first) < mpmath.mpf(2) ** -127
    assert noise.distance < 2.0**-112


@pytest.mark.parametrize("kind, exact, sigma", CASES)
def test_goodness_of_fit(kind, exact, sigma):
    x = kind(sigma).draw(DRAWS, seeded(kind.__name__, sigma))
    reach = math.ceil(5 * sigma) + 3
    expected = np.array([float(exact(sigma, k)) for k in range(-reach, reach + 1)])
    counts = np.bincount(np.clip(x + reach, 0, 2 * reach), minlength=2 * reach + 1)
    enough = expected * DRAWS >= 10  # Pearson's test needs filled cells; the rest is one cell
    observed = [*counts[enough], counts[~enough].sum()]
    wanted = np.array([*expected[enough], 1 - expected[enough].sum()]) * DRAWS
    if wanted[-1] < 10:
        observed, wanted = [*observed[:-2], observed[-2] + observed[-1]], np.array([*wanted[:-2], wanted[-2:].sum()])
    assert stats.chisquare(observed, wanted * (sum(observed) / wanted.sum())).pvalue > LEVEL


@pytest.mark.parametrize("kind, sigma", [(DiscreteGaussian, 5000.0), (DiscreteGaussian, 2.0**37 + 0.5)])
def test_large_noise_is_the_rounded_normal_law(kind, sigma):
    # From sigma = 5000 on, the discrete distribution's function differs from the normal one by less than 1/sigma.
    x = kind(sigma).draw(200_000, seeded("large", sigma))
    assert stats.kstest(x / sigma, "norm").statistic < stats.kstwo.isf(LEVEL, len(x)) + 1 / sigma
    # The low bits are uniform: a sum of a coarse grid without its fine part would fail here.
    low = np.bincount(x & 255, minlength=256)
    assert stats.chisquare(low).pvalue > LEVEL


@pytest.mark.parametrize("kind", [DiscreteGaussian, Skellam])
def test_variance_is_what_was_asked_for(kind):
    sigma = 12.5
    x = kind(sigma).draw(DRAWS, seeded("variance", kind.__name__)).astype(float)
    assert kind(sigma).variance == sigma**2
    # The sample variance of n draws of kurtosis k has a relative deviation of sqrt((k - 1) / n); k = 3 + 1/variance
    # for Skellam and at most 3 + 1e-9 for the discrete Gaussian here. Five of them: a false alarm in 1.7e6.
    tolerance = 5 * math.sqrt((2 + 1 / sigma**2) / DRAWS)
    assert abs(x.var() / sigma**2 - 1) < tolerance
    assert abs(x.mean()) < 5 * sigma / math.sqrt(DRAWS)


def test_neighbouring_draws_are_independent():
    x = DiscreteGaussian(9.0).draw(DRAWS, seeded("pairs")) / 9.0
    for lag in (1, 2, 3, 64):
        # The correlation of n independent pairs deviates by 1 / sqrt(n).
        assert abs((x[lag:] * x[:-lag]).mean()) < 5 / math.sqrt(DRAWS)


def test_every_interval_ends_where_its_threshold_says():
    sampler = TableSampler([5, 3, 1])  # of -2 .. 2: 1/13, 3/13, 5/13, 3/13, 1/13
    limits = [(n << 128) // 13 for n in (1, 4, 9, 12)]
    assert sampler._thresholds == limits
    for value, limit in zip(range(-2, 2), limits, strict=True):
        high, low = limit >> 64, limit & ((1 << 64) - 1)
        assert sampler.draw(1, Words(high - 1)).tolist() == [value]
        assert sampler.draw(1, Words(high + 1)).tolist() == [value + 1]
        # Equal first words: the second word decides, and only then is one drawn.
        for second, wanted in ((low - 1, value), (low, value + 1), (low + 1, value + 1), (0, value)):
            source = Words(high, second)
            assert sampler.draw(1, source).tolist() == [wanted]
            assert source.left == 0
    assert sampler.draw(1, Words(0)).tolist() == [-2]
    assert sampler.draw(1, Words((1 << 64) - 1)).tolist() == [2]


def test_the_far_tail_is_reached_through_ties():
    noise = DiscreteGaussian(4.0)
    top = (1 << 64) - 1
    # Everything beyond 2**-64 of the tail shares its first word; the second one tells it apart.
    values = [int(noise.draw(1, Words(top, second))[0]) for second in (0, 1 << 63, top - 1, top)]
    assert values == sorted(values)
    assert values[0] < values[-1] == noise.bound
    # Below, thresholds of less than one unit of 2**-128 are rounded down to nothing.
    assert -noise.bound <= int(noise.draw(1, Words(0, 0))[0]) <= -noise.bound + 4


@pytest.mark.parametrize("weights", [[1], [2, 1], [1000, 999, 7, 1], [1, 0, 0, 5]])
def test_small_tables_by_enumeration(weights):
    sampler = TableSampler(weights)
    total = weights[0] + 2 * sum(weights[1:])
    words = [i * ((1 << 64) // 4096) + 12345 for i in range(4096)]
    draws = sampler.draw(4096, Words(*words))
    for k, share in itertools.product(range(-len(weights) + 1, len(weights)), [1]):
        assert abs((draws == k).mean() - share * weights[abs(k)] / total) <= 2 / 4096


@pytest.mark.parametrize("kind", [DiscreteGaussian, Skellam])
@pytest.mark.parametrize("sigma", [0.0, 0.2, -1.0, math.inf, math.nan, 2.0**60])
def test_impossible_noise_is_refused(kind, sigma):
    with pytest.raises(NoiseError, match="expected a sigma of"):
        kind(sigma)


def test_tables_are_those_of_the_vectors():
    vectors = json.loads((Path(__file__).parents[2] / "vectors" / "noise_tables.json").read_text())
    assert len(vectors["tables"]) == 4
    for vector in vectors["tables"]:
        noise = (Skellam if vector["kind"] == "skellam" else DiscreteGaussian)(float(vector["sigma"]))
        assert noise.bound == vector["bound"]
        wanted = [int(t, 16) for t in vector["thresholds"]]
        off = [abs(a - b) for a, b in zip(noise._table._thresholds, wanted, strict=True)]
        assert max(off) <= vectors["tolerance"]


def test_chunks_do_not_show():
    whole = Skellam(3.0).draw(100_000, seeded("chunks"))
    again = Skellam(3.0).draw(100_000, seeded("chunks"))
    assert (whole == again).all()
    assert len(Skellam(3.0).draw(0, seeded("none"))) == 0
