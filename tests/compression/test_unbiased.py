"""Every codec that says it is unbiased is, on vectors made to break it."""

import numpy as np
import pytest

from covey.compression.codec import codec_named

from .vectors import ADVERSARIAL, Rounding, seed

UNBIASED = [
    "float32",
    "hd|float32",
    "quantize:1",
    "quantize:3",
    "hd|quantize:2",
    "subsample:0.3|quantize:2",
    "hd|subsample:0.25|quantize:2",
    "uniform:0.7:stochastic",
    "hd|uniform:2:stochastic",
    "subsample:0.5|hd|uniform:1:stochastic",
]
BIASED = [
    "hd|eden:2",
    "hd|eden:0.5",
    "hd|uniform:1.2",
    "topk:0.1",
    "mask:0.5|float32",
    "lowrank:8|float32",
    "hd|ring:12:10:5",
]
DRAWS = 1500


@pytest.mark.parametrize("spec", UNBIASED)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_mean_of_many_decodings_is_the_vector(spec, name):
    """Tolerance: 6 standard errors of the mean in each coordinate, from the draws' own deviation.

    A coordinate's mean is Gaussian to good accuracy for 1500 draws; 6 deviations are passed by chance once in 5e8, and
    there are about 700 coordinates x 12 codecs. 1e-5 of the largest value allows for float32 (rotations add up to 256
    products of relative error 6e-8), and for draws with a resolution of 2^-24.

    A coordinate that a codec sends with probability p is all zero in n draws with (1 - p)^n; for p = 1/4 that is
    negligible, so that the deviation is never mistaken for zero.
    """
    values = ADVERSARIAL[name]
    codec = codec_named(spec)
    assert codec.unbiased
    draws = np.array(
        [
            codec.decode(codec.encode(values, seed(i), Rounding(i)), values.size, seed(i))
            for i in range(1 if spec in ("float32", "hd|float32") else DRAWS)
        ],
        np.float64,
    )
    standard_error = draws.std(axis=0) / np.sqrt(len(draws))
    allowed = 6 * standard_error + 1e-5 * np.abs(values).max()
    assert (np.abs(draws.mean(axis=0) - values) <= allowed).all()


@pytest.mark.parametrize("spec", BIASED)
def test_what_is_not_unbiased_says_so(spec):
    assert not codec_named(spec).unbiased


def test_independent_errors_average_out():
    """The mean of n devices has 1/n of one device's error: within 5 % for 64 devices of 2^12 values."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal(4096).astype(np.float32)
    codec = codec_named("hd|quantize:2")
    draws = [codec.decode(codec.encode(values, seed(i), Rounding(i)), 4096, seed(i)) for i in range(64)]
    one = np.mean([np.sum((d - values) ** 2) for d in draws])
    mean = np.sum((np.mean(draws, axis=0) - values) ** 2)
    assert mean == pytest.approx(one / 64, rel=0.1)
