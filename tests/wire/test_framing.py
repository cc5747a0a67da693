import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.types.errors import CoveyError, UpdateFormatError, VersionError
from covey.wire.framing import decode_update, encode_update, max_update_bytes, part_sizes

PARTS = [("header", b"12345678"), ("model", b"abcdef")]
LIMITS = {"header": 8, "model": 6}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=5), st.binary(max_size=40)), max_size=4, unique_by=lambda p: p[0])
)
def test_decoding_is_the_inverse_of_encoding(parts):
    limits = {name: len(payload) for name, payload in parts}
    body = encode_update(parts)
    assert len(body) == max_update_bytes(limits)
    assert {k: bytes(v) for k, v in decode_update(body, limits).items()} == dict(parts)
    assert part_sizes(body) == limits


def test_every_truncation_and_every_trailing_byte_is_refused():
    body = encode_update(PARTS)
    for length in range(len(body)):
        with pytest.raises(UpdateFormatError):
            decode_update(body[:length], LIMITS)
    with pytest.raises(UpdateFormatError):
        decode_update(body + b"\0", LIMITS)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, len(encode_update(PARTS)) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused(place, flip):
    """A CRC-32 sees every change within 32 neighbouring bits."""
    body = bytearray(encode_update(PARTS))
    body[place] ^= flip
    with pytest.raises(CoveyError):
        decode_update(bytes(body), LIMITS)


def test_other_names_counts_sizes_and_versions_are_refused():
    body = encode_update(PARTS)
    for limits in ({"header": 8}, {"header": 8, "other": 6}, {"model": 6, "header": 8}, {"header": 7, "model": 6}):
        with pytest.raises(UpdateFormatError):
            decode_update(body, limits)
    with pytest.raises(VersionError):
        decode_update(body[:4] + b"\x01\x00" + body[6:], LIMITS)


def test_a_length_that_lies_allocates_nothing():
    body = bytearray(encode_update(PARTS))
    place = body.index(b"header") + 6
    body[place : place + 8] = (1 << 60).to_bytes(8, "little")
    with pytest.raises(UpdateFormatError, match="at most 8 bytes"):
        decode_update(bytes(body), LIMITS)
