"""Packing and masks against slow references, at every width and around the chunk size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.secagg import masks
from covey.secagg.masks import MaskStreams, SignedSeed, add_masks
from covey.secagg.packing import CHUNK, check_padding, chunks, pack, packed_bytes, unpack, word_dtype
from covey.types.errors import SecAggMessageError

WIDTHS = [*range(8, 33), 64]
LENGTHS = [1, 2, 7, 8, 9, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 13]


def packed(words, bits):
    out = np.zeros(packed_bytes(len(words), bits), np.uint8)
    for coordinates, piece in chunks(len(words), bits):
        pack(words[coordinates], bits, out[piece])
    return out


def unpacked(data, length, bits):
    out = np.full(length, 7, word_dtype(bits))  # what was there before must not matter
    for coordinates, piece in chunks(length, bits):
        unpack(data[piece], bits, out[coordinates])
    return out


def slow_packed(words, bits):
    """The format as the docstring words it, one coordinate and one bit field at a time."""
    out = bytearray()
    for start in range(0, len(words), CHUNK):
        chunk = [int(w) for w in words[start : start + CHUNK]]
        shift = 0
        for width in [w for w in (64, 32, 16, 8, 4, 2, 1) if bits & w]:
            fields = [w >> shift & ((1 << width) - 1) for w in chunk]
            shift += width
            if width >= 8:
                out += b"".join(f.to_bytes(width // 8, "little") for f in fields)
                continue
            per_byte = 8 // width
            size = -(-len(fields) // per_byte)
            plane = bytearray(size)
            for i, f in enumerate(fields):
                plane[i % size] |= f << (width * (i // size))
            out += plane
    return bytes(out)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_goes_there_and_back(bits):
    rng = np.random.default_rng(bits)
    for length in LENGTHS:
        words = rng.integers(0, 1 << 63, length, dtype=np.uint64) * 2 + 1
        words = words.astype(word_dtype(bits))
        data = packed(words, bits)
        check_padding(data, length, bits)
        low = word_dtype(bits).type((1 << bits) - 1)
        assert np.array_equal(unpacked(data, length, bits), words & low)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_bytes_are_those_of_the_slow_reference(bits):
    rng = np.random.default_rng(bits)
    for length in (1, 5, 64, 1003):
        words = rng.integers(0, 1 << 63, length, dtype=np.uint64).astype(word_dtype(bits))
        assert packed(words, bits).tobytes() == slow_packed(words, bits)


@pytest.mark.parametrize("bits", WIDTHS)
def test_not_a_byte_more_than_the_bits_take(bits):
    assert packed_bytes(CHUNK, bits) == CHUNK * bits // 8
    for length in LENGTHS:
        planes = sum(w < 8 for w in (4, 2, 1) if bits & w)
        assert length * bits / 8 <= packed_bytes(length, bits) < length * bits / 8 + max(1, planes)


@given(st.sampled_from([w for w in WIDTHS if w % 8]), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_a_bit_in_the_padding_is_refused(bits, length, data):
    words = np.zeros(length, word_dtype(bits))
    raw = packed(words, bits)
    used = np.zeros(len(raw) * 8, bool)
    for i in range(length):  # which bits carry anything: those that change the vector
        words[:] = 0
        words[i] = word_dtype(bits).type((1 << bits) - 1)
        used |= np.unpackbits(packed(words, bits)).astype(bool)
    unused = np.flatnonzero(~used)
    assert len(unused) == len(raw) * 8 - length * bits
    if len(unused):
        bit = int(data.draw(st.sampled_from(unused.tolist())))
        raw[bit // 8] |= 128 >> bit % 8
        with pytest.raises(SecAggMessageError):
            check_padding(raw, length, bits)


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_masks_in_chunks_are_the_whole_stream(dtype):
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    rng = np.random.default_rng(1)
    seeds = [rng.bytes(32) for _ in range(masks._BATCH + 3)]
    length = 2 * CHUNK + 77
    expected = np.zeros(length, dtype)
    for i, seed in enumerate(seeds):
        cipher = Cipher(algorithms.AES(seed[:16]), modes.CTR(seed[16:])).encryptor()
        stream = np.frombuffer(cipher.update(bytes(expected.nbytes)), dtype)
        expected = expected - stream if i % 2 else expected + stream
    total = np.zeros(length, dtype)
    signed = [SignedSeed(seed, negative=bool(i % 2)) for i, seed in enumerate(seeds)]
    add_masks(total, signed)
    assert np.array_equal(total, expected)
    streams, again = MaskStreams(signed, np.dtype(dtype)), np.zeros(length, dtype)
    for i in range(0, length, 999):  # the stream does not depend on how it is cut
        streams.add_next(again[i : i + 999])
    assert np.array_equal(again, expected)


def test_a_seed_has_32_bytes_and_shows_none_of_them():
    with pytest.raises(ValueError, match="32 bytes"):
        MaskStreams([SignedSeed(bytes(31))], np.dtype("<u2"))
    assert "\\x07" not in repr(SignedSeed(b"\x07" * 32))


@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<u8"])
def test_a_short_vector_is_masked_by_the_seed_itself(dtype):
    rng = np.random.default_rng(2)
    seeds = [rng.bytes(32) for _ in range(5)]
    for length in range(1, 32 // np.dtype(dtype).itemsize + 1):
        total = np.full(length, 9, dtype)
        add_masks(total, [SignedSeed(s, negative=i in (1, 4)) for i, s in enumerate(seeds)])
        words = [np.frombuffer(s, dtype)[:length] for s in seeds]
        assert np.array_equal(total, 9 + words[0] - words[1] + words[2] + words[3] - words[4])
