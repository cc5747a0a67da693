import math

import numpy as np
import pytest

from covey.compression.codec import codec_named
from covey.compression.eden import levels

from .vectors import SEED, Rounding, drawn, error, seed, spikes

EXPECTED = {1: 0.571, 2: 0.133, 3: 0.0357, 4: 0.0096}


@pytest.mark.parametrize("kind", ["normal", "lognormal", "t3"])
def test_the_error_is_that_of_the_paper(kind):
    """60 draws; the spread of one draw is at most 2 % of the mean (measured), so 2 % is 7 standard errors or more."""
    found = {bits: [] for bits in EXPECTED}
    for i in range(60):
        values = drawn(kind, 2**17, i)
        for bits in EXPECTED:
            codec = codec_named(f"hd|eden:{bits}")
            payload = codec.encode(values, seed(i), Rounding(i))
            found[bits].append(error(codec.decode(payload, values.size, seed(i)), values))
    for bits, expected in EXPECTED.items():
        assert abs(np.mean(found[bits]) / expected - 1) < 0.02, (kind, bits, np.mean(found[bits]))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_lloyd_max(bits):
    """Each level is the mean of N(0, 1) between the midpoints: (pdf(a) - pdf(b)) / (cdf(b) - cdf(a))."""
    table = levels(bits).astype(np.float64)
    edges = [-math.inf, *((table[1:] + table[:-1]) / 2), math.inf]
    for level, a, b in zip(table, edges, edges[1:], strict=False):
        pdf = [math.exp(-(e**2) / 2) / math.sqrt(2 * math.pi) for e in (a, b)]
        cdf = [(1 + math.erf(e / math.sqrt(2))) / 2 for e in (a, b)]
        assert level == pytest.approx((pdf[0] - pdf[1]) / (cdf[1] - cdf[0]), rel=2e-6)


def test_fractional_bits_lie_between_whole_ones_in_size_and_error():
    values = drawn("normal", 2**15)
    sizes, errors = [], []
    for bits in (0.25, 0.5, 1, 1.5, 2, 2.25, 3, 3.5, 4):
        codec = codec_named(f"hd|eden:{bits}")
        payload = codec.encode(values, SEED, Rounding())
        sizes.append(len(payload))
        errors.append(error(codec.decode(payload, values.size, SEED), values))
        assert len(payload) == codec.max_bytes(values.size)
        # 11 bytes of envelope and a scale for each of two blocks; planes of bits are rounded up to bytes.
        assert 0 <= len(payload) - bits * values.size / 8 <= 11 + 8 + 8
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_below_one_bit_it_subsamples():
    assert codec_named("hd|eden:0.25").text == "hd|subsample:0.25|eden:1"
    values = drawn("normal", 2**15)
    codec = codec_named("hd|eden:0.25")
    errors = [
        error(codec.decode(codec.encode(values, seed(i), Rounding()), values.size, seed(i)), values) for i in range(40)
    ]
    # (1 + 0.571) / 0.25 - 1 = 5.28; one draw spreads by about 2 %, the mean of 40 by 0.3 %.
    assert np.mean(errors) == pytest.approx((1 + math.pi / 2 - 1) / 0.25 - 1, rel=0.02)


@pytest.mark.parametrize(
    ("bits", "values", "bias"),
    [
        # A spike rotates to +-a in every place: one level of magnitude, found again exactly, at any width.
        (1, spikes(256, 2.0), 0.0),
        (2, spikes(256, 2.0), 0.0),
        # Two spikes rotate to +-(a + b) and +-(a - b). One bit knows only the signs, those of the larger: the estimate
        # is S a' with a' one spike, S = (a^2 + b^2) / a: the first coordinate becomes 3 + 1/3, the second 0.
        (1, spikes(256, 3.0, 1.0), math.hypot(1 / 3, 1.0) / math.hypot(3, 1)),
    ],
)
def test_its_bias_on_few_spikes_is_known(bits, values, bias):
    codec = codec_named(f"hd|eden:{bits}")
    draws = [codec.decode(codec.encode(values, seed(i), Rounding()), values.size, seed(i)) for i in range(400)]
    mean = np.mean(draws, axis=0, dtype=np.float64)
    found = float(np.linalg.norm(mean - values) / np.linalg.norm(values))
    assert found == pytest.approx(bias, abs=0.01)
    assert not codec.unbiased


def test_its_bias_vanishes_where_the_rotation_is_gaussian():
    """The mean of n draws keeps error/n if unbiased: sqrt(0.571 / 400) = 0.0378 of the norm; a bias would add to it."""
    values = drawn("normal", 4096)
    codec = codec_named("hd|eden:1")
    draws = [codec.decode(codec.encode(values, seed(i), Rounding()), values.size, seed(i)) for i in range(400)]
    mean = np.mean(draws, axis=0, dtype=np.float64)
    found = float(np.linalg.norm(mean - values) / np.linalg.norm(values))
    assert found == pytest.approx(math.sqrt((math.pi / 2 - 1) / 400), rel=0.05)
