import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.compression.codec import codec_named
from covey.compression.entropy import decode_symbols, encode_symbols
from covey.compression.packing import pack, packed_bytes, unpack
from covey.compression.public_randomness import expand_signs, picks, sign_bytes
from covey.compression.rotation import Rotation, block_width
from covey.compression.subsampling import positions
from covey.compression.top_k import _decode_positions, _encode_positions
from covey.types.errors import UpdateFormatError

from .vectors import SEED, Rounding, drawn, error, seed


def hadamard(n):
    return np.array([[1.0 - 2.0 * (bin(i & j).count("1") % 2) for j in range(n)] for i in range(n)]) / math.sqrt(n)


@pytest.mark.parametrize("length", [1, 2, 8, 64, 200, 1000])
def test_rotation_is_the_hadamard_matrix_times_signs(length):
    """Against the definition, entry by entry. Sums of up to 256 products in float32: 256 * 6e-8 of the norm at most."""
    values = drawn("normal", length)
    rotation = Rotation()
    rotated, side = rotation.forward(values.reshape(1, -1), SEED)
    rows, width = rotation.shape((1, length))
    assert side == b"" and rotated.shape == (rows, width)
    flips = expand_signs(sign_bytes(SEED, "hd", rows * width))[: rows * width].reshape(rows, width)
    padded = np.zeros((rows, width))
    padded.reshape(-1)[:length] = values
    assert np.abs(rotated - (padded * flips) @ hadamard(width)).max() <= 256 * 6e-8 * np.linalg.norm(values)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("length", [1, 3, 129, 16_385, 40_000])
def test_rotation_is_orthogonal_and_undone(length, interleaved):
    values = drawn("t3", length).reshape(1, -1)
    rotation = Rotation(interleaved=interleaved)
    rotated, _ = rotation.forward(values, SEED)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values), rel=1e-5)
    back = rotation.inverse(rotated, b"", (1, length), SEED)
    assert np.abs(back - values).max() <= 512 * 6e-8 * np.linalg.norm(values)


def test_blocks_pad_little():
    for k in range(7, 25):
        for length in (2**k - 1, 2**k, 2**k + 1, 3 * 2**k // 2 + 1):
            width = block_width(length)
            padded = -(-length // width) * width
            # A width near 4 sqrt(length) makes the 32 bits of each block and 2 bits of each padding about equal.
            assert padded <= length * 1.5, (length, width)
            assert k < 11 or padded <= length * 1.15, (length, width)
            assert width & (width - 1) == 0 and width <= 2**14
    assert block_width(2**14 + 1) < 2**14


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(1, 32), count=st.integers(1, 70), salt=st.integers(0, 1000))
def test_packing_round_trips_in_the_fewest_bytes(bits, count, salt):
    dtype = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    codes = np.random.default_rng(salt).integers(0, 2**bits, count, dtype=np.uint64).astype(dtype)
    data = pack(codes, bits)
    assert len(data) == packed_bytes(count, bits)
    assert len(data) - count * bits / 8 < 4  # at most four planes are rounded up to a byte
    assert (unpack(data, count, bits) == codes).all()
    with pytest.raises(UpdateFormatError):
        unpack(data + b"\0", count, bits)


def test_public_randomness_is_pinned():
    """Philox4x64-10's raw words are part of the protocol: another NumPy, or another language, draws the same."""
    assert sign_bytes(SEED, "hd", 64).tobytes().hex() == PINNED_SIGNS
    assert picks(SEED, "subsample", np.full(6, 1000, np.int64)).tolist() == PINNED_PICKS


PINNED_SIGNS = "a9196c462711fb85"
PINNED_PICKS = [149, 935, 353, 612, 198, 434]


@pytest.mark.parametrize(("shape", "kept"), [((1, 1), 1), ((1, 10), 3), ((3, 16), 16), ((5, 1000), 77)])
def test_subsampling_sends_one_of_each_run(shape, kept):
    at, sizes = positions(shape, kept, SEED, "subsample")
    assert at.shape == (shape[0], kept) and sizes.sum() == shape[1]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    columns = at - np.arange(shape[0])[:, None] * shape[1]
    assert ((columns >= edges[:-1]) & (columns < edges[1:])).all()


def test_every_coordinate_is_equally_likely():
    """10,000 draws over runs of 4: a count is binomial(10000, 1/4), deviation 43.3; 6 of them."""
    counts = np.zeros(12)
    for i in range(10_000):
        at, _ = positions((1, 12), 3, seed(i), "subsample")
        counts[at] += 1
    assert np.abs(counts - 2500).max() <= 6 * math.sqrt(10_000 * 0.25 * 0.75)


def test_subsampling_has_the_error_that_it_states():
    values = drawn("normal", 8192)
    codec = codec_named("subsample:0.0625|float32")
    errors = [error(codec.decode(codec.encode(values, seed(i), Rounding()), 8192, seed(i)), values) for i in range(60)]
    # One draw spreads by about 2 %: 60 of them by less than 1 %.
    assert np.mean(errors) == pytest.approx(15.0, rel=0.05)


@pytest.mark.parametrize("rank", [1, 7, 256])
def test_low_rank_is_exact_in_its_directions_and_projects_the_rest(rank):
    codec = codec_named(f"lowrank:{rank}|float32")
    basis = codec.structure.basis(seed(1))
    assert basis.shape == (256, rank) and set(np.abs(basis).ravel()) == {np.float32(1 / 16)}
    assert (basis.T @ basis == np.eye(rank)).all()  # products and sums of 1/16 are exact
    for rows in (1, 4):
        values = (np.random.default_rng(2).standard_normal((rows, rank)) @ basis.T).astype(np.float32).ravel()
        payload = codec.encode(values, seed(1), Rounding())
        assert len(payload) == codec.max_bytes(rows * 256) == codec.max_bytes(rows * 256 + 3) - 12
        assert error(codec.decode(payload, rows * 256, seed(1)), values) < 1e-12
    vector = drawn("normal", 2560)
    energy = []
    for i in range(50):
        once = codec.decode(codec.encode(vector, seed(i), Rounding()), 2560, seed(i))
        assert error(codec.decode(codec.encode(once, seed(i), Rounding()), 2560, seed(i)), once) < 1e-12
        energy.append(np.linalg.norm(once) ** 2)
    # K of 256 directions have K / 256 of the energy: 10 K squares a draw, 50 draws.
    share = np.mean(energy) / np.linalg.norm(vector) ** 2 * 256 / rank
    assert abs(share - 1) < 6 * math.sqrt(2 / (500 * rank)) + 1e-5


@pytest.mark.parametrize("step", [0.3, 0.6, 1.2, 2.2, 4.0])
def test_entropy_coding_is_within_one_percent_of_the_empirical_entropy(step):
    symbols = np.rint(drawn("normal", 200_000) / step).astype(np.int16)
    _, counts = np.unique(symbols, return_counts=True)
    share = counts / counts.sum()
    entropy_bytes = -(share * np.log2(share)).sum() * symbols.size / 8
    data = encode_symbols(symbols)
    assert len(data) <= 1.01 * entropy_bytes + 6 * len(counts)  # the table of symbols travels besides
    assert len(data) <= 1.01 * entropy_bytes or step > 3
    assert (decode_symbols(memoryview(data), symbols.size) == symbols).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-32767, 32767), min_size=1, max_size=200), st.integers(1, 50))
def test_symbols_of_any_distribution_come_back(some, times):
    symbols = np.array(some * times, np.int16)
    data = encode_symbols(symbols)
    assert len(data) <= 2 + 2 * symbols.size
    assert (decode_symbols(memoryview(data), symbols.size) == symbols).all()


def test_uniform_quantization_beats_eden_at_its_size():
    """papers.md's measured points are for 2^17 Gaussian values: 1.87 bits .120, 2.81 bits .030."""
    values = drawn("normal", 2**17)
    for step, bits, expected in ((1.2, 1.87, 0.120), (0.6, 2.81, 0.030)):
        codec = codec_named(f"hd|uniform:{step}")
        payload = codec.encode(values, SEED, Rounding())
        assert 8 * len(payload) / values.size == pytest.approx(bits, abs=0.02)
        assert error(codec.decode(payload, values.size, SEED), values) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("step", [5.0, 1e3])
def test_a_wide_step_never_rounds_an_update_to_nothing(step):
    values = drawn("normal", 100)
    codec = codec_named(f"hd|uniform:{step}")
    decoded = codec.decode(codec.encode(values, SEED, Rounding()), 100, SEED)
    # S = ||z||^2 / <c, z>: the estimate's product with the update is the update's squared norm, whatever was kept.
    assert float(decoded @ values) == pytest.approx(float(values @ values), rel=1e-4)


def test_probabilistic_quantization_has_two_to_the_b_levels():
    values = drawn("normal", 1000)
    for bits in (1, 2, 5):
        codec = codec_named(f"quantize:{bits}")
        decoded = codec.decode(codec.encode(values, SEED, Rounding()), 1000, SEED)
        assert len(np.unique(decoded)) <= 2**bits
        assert decoded.min() == values.min()
        assert np.abs(decoded - values).max() <= (values.max() - values.min()) / (2**bits - 1) * 1.00001


def test_top_k_keeps_the_largest():
    values = drawn("t3", 1000)
    codec = codec_named("topk:0.05")
    decoded = codec.decode(codec.encode(values, SEED, Rounding()), 1000, SEED)
    largest = np.sort(np.abs(values))[-50:]
    assert (np.sort(np.abs(decoded[decoded != 0])) == largest).all()
    assert (decoded[decoded != 0] == values[decoded != 0]).all()


@settings(max_examples=80, deadline=None)
@given(st.sets(st.integers(0, 5000), min_size=1, max_size=300), st.integers(0, 3000))
def test_positions_round_trip_within_their_bound(some, more):
    at = np.array(sorted(some), np.int64)
    length = int(at[-1]) + 1 + more
    data = _encode_positions(at, length)
    assert (_decode_positions(data, len(at), length) == at).all()


def test_a_mask_sends_what_was_trained_and_nothing_else():
    codec = codec_named("mask:0.1|float32")
    trained = codec.structure.positions(1000, SEED)
    values = np.zeros(1000, np.float32)
    values[trained] = drawn("normal", len(trained))
    payload = codec.encode(values, SEED, Rounding())
    assert len(payload) == 11 + 400
    assert (codec.decode(payload, 1000, SEED) == values).all()
    assert codec_named("float32").structure is None
