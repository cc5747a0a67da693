import math

import numpy as np
import pytest

from covey.compression.codec import codec_for, codec_named, norm_share, part_codec
from covey.compression.ring import choose_ring, expected_errors
from covey.compression.secure import SecurePath
from covey.types.errors import (
    CompressionSpecError,
    LayoutError,
    UpdateFormatError,
    UpdateNotFiniteError,
    UpdateRangeError,
)

from .vectors import ADVERSARIAL, SEED, Rounding, drawn, error, seed


def updates(length, devices):
    return [drawn("normal", length, i) for i in range(devices)]


def opened(path, vectors, public_seed=SEED):
    total = np.zeros(path.num_values, np.uint64)
    for i, values in enumerate(vectors):
        total += path.encode(values, public_seed, Rounding(i))
    return path.open((total % 2**path.ring_bits).astype(np.uint32), public_seed)


@pytest.mark.parametrize("length", [1, 2, 129, 8193, 30_000])
def test_the_opened_sum_is_the_sum(length):
    """Rounding adds at most a step's variance / 4 for each integer and device; 6 deviations of the norm's square."""
    path = SecurePath(length, n_max=20, ring_bits=20, norm=math.sqrt(length), clamp_deviations=12.0)
    vectors = updates(length, 20)
    total = np.sum(vectors, axis=0, dtype=np.float64)
    difference = opened(path, vectors) - total
    variance = 20 * path.num_values * path.step**2 / 4
    assert float(difference @ difference) <= variance * (1 + 6 * math.sqrt(2 / path.num_values)) + 1e-9 * total @ total


def test_a_sum_is_opened_once_for_all():
    """Linearity, exactly: opening the sum of residues equals the sum of what each of them opens to, in reals.

    Float32 rotations of up to 2^8 x 2^8 blocks differ by their rounding: 1e-5 of the norm.
    """
    path = SecurePath(5000, n_max=8, ring_bits=16, norm=70.0, keep=0.25)
    vectors = updates(5000, 8)
    singles = sum(path.open(path.encode(v, SEED, Rounding(i)), SEED).astype(np.float64) for i, v in enumerate(vectors))
    assert np.linalg.norm(opened(path, vectors) - singles) <= 1e-5 * np.linalg.norm(singles)


def test_the_largest_cohort_cannot_wrap():
    """Every device at the clamp, in one direction: the sum is n_max * bound, still below half of the ring."""
    for bits, n_max in ((8, 100), (12, 100), (8, 127), (16, 1000)):
        path = SecurePath(128, n_max=n_max, ring_bits=bits, norm=1.0)
        assert n_max * path.bound < 2 ** (bits - 1)
        huge = np.zeros(128, np.float32)
        huge[0] = 1e30  # rotates to +-huge in all places, and is clamped
        one = path.open(path.encode(huge, SEED, Rounding()), SEED)
        all_of_them = opened(path, [huge] * n_max)
        assert np.allclose(all_of_them, n_max * one, rtol=1e-5, atol=1e-4 * n_max * path.clamp)
    path = SecurePath(128, n_max=3, ring_bits=32, norm=1.0)
    residues = path.encode(np.full(128, 1e20, np.float32), SEED, Rounding()).astype(np.int64)
    assert np.abs(np.where(residues >= 2**31, residues - 2**32, residues)).max() <= path.bound
    with pytest.raises(LayoutError, match="room for one step"):
        SecurePath(128, n_max=128, ring_bits=8, norm=1.0)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_rounding_and_subsampling_are_unbiased_where_nothing_is_clamped(name, keep):
    """6 standard errors in each coordinate, and 1e-5 for float32: see test_unbiased."""
    values = ADVERSARIAL[name]
    norm = float(np.linalg.norm(values))
    wide = 40.0  # a spike rotates to norm / sqrt(width): no more than one deviation; constants may add up in one place
    path = SecurePath(values.size, 10, 14, norm, keep, clamp_deviations=wide)
    draws = np.array(
        [path.open(path.encode(values, seed(i), Rounding(i)), seed(i)) for i in range(1500)],
        np.float64,
    )
    allowed = 6 * draws.std(axis=0) / math.sqrt(len(draws)) + 1e-5 * norm
    assert (np.abs(draws.mean(axis=0) - values) <= allowed).all()


def test_shared_subsampling_does_not_average_out():
    """One mask for all: the error of the mean is ((1 - p) / p) of its squared norm, however many devices there are."""
    path = SecurePath(8192, n_max=16, ring_bits=20, norm=100.0, keep=0.25)
    vectors = [drawn("normal", 8192)] * 16
    errors = []
    for i in range(20):
        mean = opened(path, vectors, seed(i)) / 16
        errors.append(error(mean, vectors[0]))
    assert np.mean(errors) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("bits", [2, 7, 8, 12, 16, 20, 32])
def test_residues_are_packed_in_their_bits(bits):
    path = SecurePath(1000, n_max=1, ring_bits=bits, norm=30.0)
    residues = np.random.default_rng(bits).integers(0, 2**bits, path.num_values, dtype=np.uint64).astype(np.uint32)
    data = path.pack(residues)
    assert len(data) == path.num_bytes and path.num_bytes - path.num_values * bits / 8 < 4
    assert (path.unpack(data) == residues).all()
    with pytest.raises(UpdateFormatError):
        path.unpack(data[:-1])


@pytest.mark.parametrize(
    "spec", ["hd|ring:20:8:clip", "hd|subsample:0.25|ring:20:8:clip", "mask:0.5|hd|ring:20:8:clip"]
)
@pytest.mark.parametrize("length", [1, 33, 5000])
def test_the_linear_part_is_linear_and_the_same_for_all(spec, length):
    """Law: lifting the sum of projections is the sum of what each lifts to; float32 rotations round to 1e-5."""
    codec, vectors = codec_named(spec), updates(length, 5)
    sent = [codec.project(v, SEED) for v in vectors]
    assert {len(x) for x in sent} == {codec.projection(length).num_values}
    total = codec.lift(np.sum(sent, axis=0), length, SEED)
    singles = np.sum([codec.lift(x, length, SEED).astype(np.float64) for x in sent], axis=0)
    assert np.linalg.norm(total - singles) <= 1e-5 * np.linalg.norm(singles)
    if spec.startswith("hd|ring"):
        assert np.linalg.norm(total - np.sum(vectors, axis=0)) <= 1e-5 * np.linalg.norm(total)
        assert np.linalg.norm(sent[0]) == pytest.approx(np.linalg.norm(vectors[0]), rel=1e-5)  # a rotation


def test_a_part_of_the_coordinates_has_its_part_of_the_norm():
    """norm_share is sqrt(sent / all): the mean squared norm of what is sent over the vector's, 6 standard errors."""
    codec, values = codec_named("hd|subsample:0.125|ring:20:8:clip"), drawn("lognormal", 3000)
    share = norm_share([(codec, 3000)])
    assert share == pytest.approx(math.sqrt(0.125), rel=0.02)  # rows of 32 and more send whole numbers of values
    squares = [float(np.linalg.norm(codec.project(values, seed(i))) ** 2) for i in range(200)]
    expected = share**2 * float(np.linalg.norm(values)) ** 2
    assert abs(np.mean(squares) - expected) <= 6 * np.std(squares) / math.sqrt(200)
    assert norm_share([(codec_named("float32"), 7)]) == 1.0
    assert norm_share([(codec, 3000), (codec, 3000)]) == share


def test_what_a_part_opens_to_is_unbiased():
    codec, values = codec_named("hd|subsample:0.25|ring:20:8:clip"), ADVERSARIAL["spike on noise"]
    draws = np.array([codec.lift(codec.project(values, seed(i)), values.size, seed(i)) for i in range(1500)], float)
    allowed = 6 * draws.std(axis=0) / math.sqrt(len(draws)) + 1e-5 * np.linalg.norm(values)
    assert (np.abs(draws.mean(axis=0) - values) <= allowed).all()


def test_a_norm_that_is_the_clips_needs_noise():
    codec = codec_named("mask:0.5|hd|subsample:0.25|ring:12:100:clip:3")
    assert codec.text == "mask:0.5|hd|subsample:0.25|ring:12:100:clip:3" and codec.ring.norm is None
    for refused in (
        lambda: codec.encode(np.ones(64, np.float32), SEED, Rounding()),
        lambda: codec.ring_segment("model", 64),
        lambda: codec_for("hd|ring:12:100:clip", "secure", 10),
        lambda: codec_for("hd|ring:12:100:clip", "plain", 10),
    ):
        with pytest.raises(CompressionSpecError, match="differential privacy beside it"):
            refused()
    assert codec_for("hd|ring:12:100:clip", "secure", 100, noised=True) is codec_named("hd|ring:12:100:clip")
    with pytest.raises(CompressionSpecError, match="a ring for the 101 devices"):
        codec_for("hd|ring:12:100:clip", "secure", 101, noised=True)


@pytest.mark.parametrize(
    "spec", ["hd|ring:12:100:1.5", "hd|eden:2", "hd|uniform:2", "quantize:4", "topk:0.1", "lowrank:4"]
)
@pytest.mark.parametrize("mode", ["plain", "secure"])
def test_under_noise_only_what_leaves_rounding_to_it_composes(spec, mode):
    with pytest.raises(CompressionSpecError, match="leaves rounding to the noise") as caught:
        codec_for(spec, mode, 10, noised=True)
    assert "ring:B:N:clip" in caught.value.hint


@pytest.mark.parametrize("bits", [2, 8, 12, 16, 20, 25])
def test_integers_under_noise_travel_in_the_bits_of_their_ring(bits):
    codec = part_codec(codec_named(f"hd|ring:{bits}:1:clip"), noised=True)
    top = min(2 ** (bits - 1), 2**24) - 1
    values = np.random.default_rng(bits).integers(-top, top + 1, 1001).astype(np.float32)
    values[:2] = top, -top
    payload = codec.encode(values, SEED, Rounding())
    assert len(payload) == codec.max_bytes(1001) and len(payload) - 1001 * bits / 8 < 16
    assert (codec.decode(payload, 1001, SEED) == values).all()
    for bad in (payload[:-1], payload + b"x", payload[:20] + bytes([payload[20] ^ 1]) + payload[21:]):
        with pytest.raises(UpdateFormatError):
            codec.decode(bad, 1001, SEED)
    with pytest.raises(UpdateRangeError):
        codec.encode(np.full(3, 2.0 ** (bits - 1), np.float32), SEED, Rounding())
    assert part_codec(codec_named("float32"), noised=True).text == "float32"


def test_its_segment_is_what_secure_aggregation_sums():
    path = codec_named("hd|subsample:0.5|ring:12:100:7").ring.path(8192)
    segment = path.segment("model")
    assert (segment.length, segment.ring_bits, segment.n_max) == (path.num_values, 12, 100)
    assert segment.n_max * segment.bound < 2**11


def test_bad_input_is_refused():
    path = SecurePath(100, n_max=10, ring_bits=16, norm=10.0)
    for bad in (np.nan, np.inf):
        with pytest.raises(UpdateNotFiniteError):
            path.encode(np.full(100, bad, np.float32), SEED, Rounding())
    with pytest.raises(UpdateFormatError):
        path.encode(np.zeros(99, np.float32), SEED, Rounding())
    with pytest.raises(UpdateFormatError):
        path.open(np.full(path.num_values, 2**16, np.uint32), SEED)
    with pytest.raises(LayoutError):
        SecurePath(100, n_max=10, ring_bits=16, norm=math.nan)
    codec = codec_named("hd|ring:8:10:1")
    payload = bytearray(codec.encode(np.zeros(64, np.float32), SEED, Rounding()))
    payload[11:] = bytes([100]) * (len(payload) - 11)  # 100 is above 127 / 10, and a valid residue
    import struct
    import zlib

    payload[7:11] = struct.pack("<I", zlib.crc32(payload[11:], zlib.crc32(payload[:7])))
    with pytest.raises(UpdateRangeError):
        codec.decode(payload, 64, SEED)


@pytest.mark.parametrize(
    # papers.md's table (k = 4): n = 100: 12 bits .0064, 14 bits .0004; n = 1000: 16 bits .0025.
    ("n_max", "bits", "expected"),
    [(100, 12, 0.0064), (100, 14, 0.0004), (1000, 16, 0.0025)],
)
def test_the_errors_are_those_of_the_published_rule(n_max, bits, expected):
    path = SecurePath(2**14, n_max, bits, norm=128.0)
    rounding, _ = expected_errors(path)
    assert rounding == pytest.approx(expected, rel=0.1)
    values = drawn("normal", 2**14)
    values *= 128 / np.linalg.norm(values)
    found = np.mean([error(path.open(path.encode(values, SEED, Rounding(i)), SEED), values) for i in range(10)])
    assert found == pytest.approx(sum(expected_errors(path)), rel=0.05)


def test_the_chooser_takes_the_narrowest_ring_and_says_why():
    choice = choose_ring(2**14, 100, 128.0, max_error=0.01)
    assert choice.path.ring_bits == 12
    assert choice.error <= 0.01
    assert "11 bits" in choice.reasons[-2] and "over the budget" in choice.reasons[-2]
    assert "100 devices x" in choice.reasons[-1] and "within the budget of 0.01" in choice.reasons[-1]
    assert choose_ring(2**14, 1000, 128.0, max_error=0.01).path.ring_bits == 15
    assert choose_ring(2**14, 10, 128.0, max_error=0.01).path.ring_bits < choice.path.ring_bits
    assert choose_ring(2**14, 100, 128.0, max_error=1e-4).path.ring_bits > choice.path.ring_bits
    with pytest.raises(LayoutError, match="within 32 bits"):
        choose_ring(2**14, 2**30, 128.0, max_error=1e-3)
