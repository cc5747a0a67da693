"""A checkpoint as devices download it: sizes that the plan tells, the same bits everywhere, and every damage."""

import struct
import zlib

import numpy as np
import pytest

from covey.compression.checkpoint import (
    decode_download,
    download_num_bytes,
    download_spec,
    encode_download,
)
from covey.types.errors import CheckpointFormatError, CompressionSpecError, LayoutError, UpdateNotFiniteError
from covey.types.tensors import TensorSpec, pack_tensors, packed_num_bytes

from .vectors import Rounding

SPECS = (TensorSpec("b", (3,)), TensorSpec("none", (0, 4)), TensorSpec("one", ()), TensorSpec("w", (40, 5)))
BITS = range(1, 9)


def drawn(seed: int = 0):
    """Return parameters of four scales: one range for all of them would lose the small ones."""
    rng = np.random.default_rng(seed)
    return {s.name: (10.0**i * rng.standard_normal(s.shape)).astype(np.float32) for i, s in enumerate(SPECS)}


def encoded(spec="quantize:8", seed=0):
    return encode_download(drawn(seed), SPECS, spec, Rounding())


@pytest.mark.parametrize("bits", BITS)
def test_the_plan_tells_the_size_and_each_tensor_has_its_own_range(bits):
    spec, params = f"quantize:{bits}", drawn()
    data = encoded(spec)
    assert len(data) == download_num_bytes(spec, SPECS)
    found = decode_download(data, SPECS, spec)
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in params.items()}
    assert found["one"] == params["one"]  # a range of one value
    for name in ("b", "w"):
        interval = np.ptp(params[name]) / (2**bits - 1)
        assert np.abs(found[name] - params[name]).max() <= interval * (1 + 1e-5)
        assert not found[name].flags.writeable


def test_decoding_is_one_product_and_one_sum_in_float32():
    """From the bytes, by the layout of SPEC.md, one value at a time: what any other implementation must get."""
    data, found = encoded(), decode_download(encoded(), SPECS, "quantize:8")
    start = len(data) - (1 + 11 + 8 + 200)
    low, interval = np.frombuffer(data, "<f4", count=2, offset=start + 12)
    codes = data[start + 20 :]
    assert [np.float32(low + np.float32(np.float32(c) * interval)) for c in codes] == found["w"].ravel().tolist()


def test_eight_bits_are_four_times_smaller():
    specs = (TensorSpec("w", (1000, 100)),)
    assert packed_num_bytes(specs) / download_num_bytes("quantize:8", specs) > 3.99


def test_without_a_spec_it_is_float32():
    for spec in ("", "float32"):
        assert download_spec(spec) == ""
        data = encode_download(drawn(), SPECS, spec, Rounding())
        assert data == pack_tensors(drawn()) and len(data) == download_num_bytes(spec, SPECS)
        found = decode_download(data, SPECS, spec)
        assert all(np.array_equal(found[k], v) for k, v in drawn().items())
        with pytest.raises(LayoutError):
            decode_download(data[:-1], SPECS, spec)


@pytest.mark.parametrize(
    "spec",
    ["hd|quantize:8", "hd|eden:4", "uniform:0.1", "topk:0.1|quantize:8", "mask:0.5|quantize:8", "quantize:9", "q"],
)
def test_other_specs_are_no_downloads(spec):
    with pytest.raises(CompressionSpecError):
        download_spec(spec)
    with pytest.raises(CompressionSpecError):
        download_num_bytes(spec, SPECS)


def test_only_float32_is_quantized():
    with pytest.raises(CompressionSpecError, match="float32 parameters"):
        download_num_bytes("quantize:8", (*SPECS, TensorSpec("z", (2,), "int32")))


def test_a_model_that_diverged_is_not_encoded():
    for bad in (np.nan, np.inf):
        with pytest.raises(UpdateNotFiniteError):
            encode_download({**drawn(), "one": np.array(bad, np.float32)}, SPECS, "quantize:8", Rounding())
    with pytest.raises(LayoutError):
        encode_download({**drawn(), "b": np.zeros(4, np.float32)}, SPECS, "quantize:8", Rounding())


def test_a_payload_of_another_length_is_refused():
    data = encoded()
    for bad in (b"", data[:-1], data[1:], data + b"\0"):
        with pytest.raises(CheckpointFormatError, match=rf"expected {len(data)} bytes, got {len(bad)}"):
            decode_download(bad, SPECS, "quantize:8")


def test_every_flipped_bit_is_seen():
    data = encoded("quantize:1")
    for i in range(8 * len(data)):
        bad = bytearray(data)
        bad[i // 8] ^= 1 << i % 8
        with pytest.raises(CheckpointFormatError, match="tensor"):
            decode_download(bytes(bad), SPECS, "quantize:1")


def test_one_tensor_does_not_pass_for_another_nor_a_difference_for_a_whole():
    specs = (TensorSpec("a", (4,)), TensorSpec("b", (4,)))
    data = encode_download({"a": np.arange(4, dtype="f4"), "b": np.ones(4, "f4")}, specs, "quantize:8", Rounding())
    half = len(data) // 2
    with pytest.raises(CheckpointFormatError, match="this seed"):
        decode_download(data[half:] + data[:half], specs, "quantize:8")
    with pytest.raises(CheckpointFormatError, match="the base that it differs from"):
        decode_download(b"\1" + data[1:], specs, "quantize:8")


def test_a_liar_with_a_valid_checksum_gets_no_infinity_through():
    """The largest float32 as an interval: 255 of them overflow."""
    one = (TensorSpec("a", (2,)),)
    data = bytearray(encode_download({"a": np.array([1, 2], "f4")}, one, "quantize:8", Rounding()))
    data[12:20] = struct.pack("<ff", 0.0, 3e38)
    data[8:12] = struct.pack("<I", zlib.crc32(data[12:], zlib.crc32(data[1:8])))
    with pytest.raises(CheckpointFormatError, match="finite"):
        decode_download(bytes(data), one, "quantize:8")
