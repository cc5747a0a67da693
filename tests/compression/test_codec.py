import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.compression.codec import HEADER_CODEC, codec_named, segment_seed
from covey.types.errors import (
    CoveyError,
    LayoutError,
    UpdateFormatError,
    UpdateNotFiniteError,
    UpdateRangeError,
    VersionError,
)

from .vectors import SEED, Rounding, drawn, error, seed, spikes

SPECS = [
    "float32",
    "quantize:2",
    "hd|quantize:8",
    "hd|eden:1",
    "hd|eden:2.5",
    "hd|eden:0.1",
    "subsample:0.1|hd|eden:2",
    "hd|uniform:1.2",
    "uniform:3:stochastic",
    "topk:0.05",
    "topk:0.05|quantize:4",
    "mask:0.2|hd|eden:2",
    "lowrank:16|hd|eden:3",
    "hd|ring:12:100:200",
    "hd|subsample:0.25|ring:8:10:200",
    "mask:0.2|hd|ring:12:100:100",
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 127, 128, 129, 8193, 20_001])
def test_sizes_of_every_kind_come_back(spec, length):
    codec = codec_named(spec)
    values = drawn("t3", length)
    before = values.copy()
    payload = codec.encode(values, SEED, Rounding())
    assert (values == before).all(), "the update is not changed"
    assert len(payload) <= codec.max_bytes(length)
    decoded = codec.decode(payload, length, SEED)
    assert decoded.shape == (length,) and np.isfinite(decoded).all()
    assert payload == codec.encode(values, SEED, Rounding()), "equal randomness gives equal bytes"


@pytest.mark.parametrize("spec", SPECS)
def test_a_zero_vector_is_zero(spec):
    codec = codec_named(spec)
    payload = codec.encode(np.zeros(1000, np.float32), SEED, Rounding())
    assert not codec.decode(payload, 1000, SEED).any()


@pytest.mark.parametrize("spec", SPECS)
def test_a_codec_knows_whether_its_size_depends_on_the_values(spec):
    codec, sizes = codec_named(spec), set()
    for values in (drawn("normal", 3000, 1), drawn("lognormal", 3000, 1), spikes(3000, 5), np.zeros(3000)):
        sizes.add(len(codec.encode(values.astype(np.float32), SEED, Rounding(1))))
    assert codec.has_fixed_size == (sizes == {codec.max_bytes(3000)})


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(spec, bad):
    values = drawn("normal", 300)
    values[137] = bad
    with pytest.raises(UpdateNotFiniteError, match="NaN or an infinity"):
        codec_named(spec).encode(values, SEED, Rounding())


@pytest.mark.parametrize("spec", [s for s in SPECS if "ring" not in s])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e30, 1e36])
def test_extreme_magnitudes_keep_their_error(spec, scale):
    """Squares of these leave float32's range; the exponent in the envelope brings them back."""
    codec = codec_named(spec)
    values = drawn("normal", 2000)
    usual = error(codec.decode(codec.encode(values, SEED, Rounding()), 2000, SEED), values)
    extreme = values * np.float32(scale)
    decoded = codec.decode(codec.encode(extreme, SEED, Rounding()), 2000, SEED)
    # 1e-38 is at float32's smallest normal number: below it numbers lose digits, up to 2 % of the norm here.
    assert error(decoded.astype(np.float64) / scale, values) == pytest.approx(usual, rel=0.05, abs=1e-3)


def test_the_exact_codecs_keep_every_bit():
    for codec, dtype, width in ((codec_named("float32"), np.float32, 4), (HEADER_CODEC, np.float64, 8)):
        values = np.array([0.0, -0.0, 1.5, np.finfo(dtype).tiny, np.finfo(dtype).max], dtype)
        payload = codec.encode(values, SEED, Rounding())
        assert len(payload) == codec.max_bytes(5) == 5 * width
        assert codec.decode(payload, 5, SEED).tobytes() == values.tobytes()


@pytest.mark.parametrize("spec", SPECS[1:])
def test_damage_is_seen(spec):
    codec = codec_named(spec)
    payload = codec.encode(drawn("normal", 400), SEED, Rounding())
    for cut in (0, 1, 5, 10, 11, 12, len(payload) // 2, len(payload) - 1):
        with pytest.raises(UpdateFormatError):
            codec.decode(payload[:cut], 400, SEED)
    for more in (b"\0", b"more" * 100, payload):
        with pytest.raises(UpdateFormatError):
            codec.decode(payload + more, 400, SEED)
    for bit in range(0, 8 * len(payload), 7):
        flipped = bytearray(payload)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(UpdateFormatError if bit >= 8 else VersionError):
            codec.decode(flipped, 400, SEED)
    for length, other in ((401, SEED), (399, SEED), (400, seed(1))):
        with pytest.raises(UpdateFormatError):
            codec.decode(payload, length, other)
    for name in SPECS:
        if codec_named(name).text != codec.text:
            with pytest.raises(UpdateFormatError):
                codec_named(name).decode(payload, 400, SEED)


@settings(max_examples=150, deadline=None)
@given(spec=st.sampled_from(SPECS[1:]), body=st.binary(max_size=400), length=st.integers(1, 200))
def test_a_liar_with_a_valid_checksum_gets_an_error_or_finite_values(spec, body, length):
    """Anyone can compute a CRC: past it, every stage checks for itself."""
    import struct
    import zlib

    from covey.types.rng import derive_seed

    codec = codec_named(spec)
    tag = int.from_bytes(derive_seed(SEED, "codec", codec.text, length)[:4], "little")
    head = struct.pack("<BhI", 1, 0, tag)
    payload = head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body
    try:
        decoded = codec.decode(payload, length, SEED)
    except CoveyError as e:
        assert isinstance(e, UpdateFormatError | UpdateNotFiniteError | UpdateRangeError)
    else:
        assert decoded.shape == (length,) and np.isfinite(decoded).all()


def test_an_empty_update_is_refused():
    with pytest.raises(LayoutError):
        codec_named("float32").encode(np.zeros(0, np.float32), SEED, Rounding())


def test_seeds_differ_by_session_and_segment_and_are_shared_where_sums_are_taken():
    plain, ring = codec_named("hd|eden:2"), codec_named("hd|ring:12:100:1")
    of = {"round_seed": "ab" * 32, "session": "a", "segment": "model"}
    assert segment_seed(plain, **of) == segment_seed(plain, **of)
    assert (
        len({segment_seed(plain, **{**of, k: v}) for k, v in (("session", "b"), ("segment", "x"), ("session", "a"))})
        == 3
    )
    assert segment_seed(plain, **of) != segment_seed(plain, **{**of, "round_seed": "cd" * 32})
    assert segment_seed(ring, **of) == segment_seed(ring, **{**of, "session": "b"})


def measured(length, spec):
    """Return the peak of encoding and of decoding, in bytes a value, in a fresh process; tracemalloc sees NumPy's."""
    code = f"""
import tracemalloc, numpy as np
from covey.compression.codec import codec_named
class Zeros:
    def take(self, num_bytes): return bytes(num_bytes)
values = np.random.default_rng(0).random({length}, np.float32)
codec = codec_named({spec!r})
codec.decode(codec.encode(values[:5000], bytes(32), Zeros()), 5000, bytes(32))
tracemalloc.start()
payload = codec.encode(values, bytes(32), Zeros())
print(tracemalloc.get_traced_memory()[1] / values.size)
tracemalloc.stop()
tracemalloc.start()
codec.decode(payload, values.size, bytes(32))
print(tracemalloc.get_traced_memory()[1] / values.size)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


@pytest.mark.parametrize("spec", ["hd|eden:2", "hd|subsample:0.0625|quantize:2"])
def test_fifty_million_values_take_the_memory_that_is_stated(spec):
    encoding, decoding = measured(50_000_000, spec)
    assert encoding <= 7 and decoding <= 9


@pytest.mark.parametrize("spec", ["hd|eden:1", "hd|eden:0.1", "hd|quantize:8", "hd|uniform:1.2", *SPECS[8:]])
def test_every_spec_takes_the_memory_that_is_stated(spec):
    """Two million values; the few megabytes of scratch are 2 bytes a value here."""
    encoding, decoding = measured(2_000_000, spec)
    usual = spec.startswith("hd|") and "ring" not in spec
    assert encoding <= 2 + (40 if not usual else 20 if "uniform" in spec else 7)
    assert decoding <= 2 + (9 if usual else 45)


def test_a_spike_does_not_take_the_scale_of_others():
    """Blocks have their own scales: what is zero elsewhere stays zero."""
    codec = codec_named("hd|eden:1")
    values = spikes(2**16, 100.0)
    decoded = codec.decode(codec.encode(values, SEED, Rounding()), values.size, SEED)
    assert error(decoded, values) < 1e-10
