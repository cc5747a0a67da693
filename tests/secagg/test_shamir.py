"""GF(2^16) and Shamir's scheme against slow references that share no code with them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.secagg import field
from covey.secagg.shamir import combine, combine_many, split
from covey.types.errors import SecAggParameterError, ShareError
from secagg.sessions import Seeded


def slow_multiply(a: int, b: int) -> int:
    """Carry-less product, reduced bit by bit."""
    product = 0
    for i in range(16):
        if b >> i & 1:
            product ^= a << i
    for i in range(30, 15, -1):
        if product >> i & 1:
            product ^= 0x1100B << (i - 16)
    return product


def slow_inverse(a: int) -> int:
    """a^(2^16 - 2), by squaring and multiplying."""
    out, power, exponent = 1, a, (1 << 16) - 2
    while exponent:
        if exponent & 1:
            out = slow_multiply(out, power)
        power, exponent = slow_multiply(power, power), exponent >> 1
    return out


def slow_combine(shares: dict[int, list[int]]) -> list[int]:
    """Lagrange's formula at zero, limb by limb."""
    out = [0] * len(next(iter(shares.values())))
    for x, values in shares.items():
        weight = 1
        for other in shares:
            if other != x:
                weight = slow_multiply(weight, slow_multiply(other, slow_inverse(other ^ x)))
        out = [o ^ slow_multiply(weight, v) for o, v in zip(out, values, strict=True)]
    return out


elements = st.integers(0, 65_535)


@given(elements, elements)
def test_products_are_those_of_the_slow_reference(a, b):
    assert int(field.multiply(np.uint16(a), np.uint16(b))) == slow_multiply(a, b)


def test_the_field_is_a_field():
    everything = np.arange(65_536, dtype=np.uint16)
    assert len(np.unique(field.exp(np.arange(field.ORDER)))) == field.ORDER  # x generates all but zero
    assert np.all(field.multiply(everything[1:], field.inverse(everything[1:])) == 1)
    assert not field.multiply(everything, np.zeros_like(everything)).any()
    assert np.array_equal(field.multiply(everything, np.ones_like(everything)), everything)
    with pytest.raises(ZeroDivisionError):
        field.inverse(everything)


@given(elements, elements, elements)
def test_products_distribute_over_sums(a, b, c):
    a, b, c = (np.array([v], np.uint16) for v in (a, b, c))
    assert np.array_equal(field.multiply(a, b ^ c), field.multiply(a, b) ^ field.multiply(a, c))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_t_shares_combine_and_agree_with_the_reference(data):
    secret = data.draw(st.binary(min_size=32, max_size=32))
    holders = data.draw(st.lists(st.integers(1, 65_535), min_size=2, max_size=20, unique=True))
    t = data.draw(st.integers(1, len(holders)))
    shares = dict(zip(holders, split(secret, t, holders, Seeded(data.draw(st.integers()))), strict=True))
    chosen = data.draw(st.permutations(holders))[:t]
    assert combine({x: shares[x] for x in chosen}) == secret
    limbs = {x: np.frombuffer(shares[x], "<u2").tolist() for x in chosen}
    assert np.array(slow_combine(limbs), "<u2").tobytes() == secret


@pytest.mark.parametrize("t", [2, 257, 400])
def test_more_holders_than_gf_256_has_elements(t):
    secret, holders = bytes(range(32)), list(range(1, 513))
    shares = split(secret, t, holders, Seeded(1))
    assert len(set(shares)) == 512  # all distinct: no two holders have the same coordinate
    picked = np.random.default_rng(0).permutation(512)[:t]
    assert combine({holders[i]: shares[i] for i in picked}) == secret
    if t > 2:
        assert combine({holders[i]: shares[i] for i in picked[:-1]}) != secret


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_t_minus_1_shares_fit_every_secret(data):
    """Perfect secrecy, constructively: for any other secret there is a t-th share with which the same t - 1 combine."""
    t = data.draw(st.integers(2, 8))
    holders = list(range(1, t + 1))
    secret, other = data.draw(st.binary(min_size=4, max_size=4)), data.draw(st.binary(min_size=4, max_size=4))
    shares = dict(zip(holders, split(secret, t, holders, Seeded(data.draw(st.integers()))), strict=True))
    limbs = {x: np.frombuffer(s, "<u2").tolist() for x, s in shares.items()}
    # the polynomial through the t - 1 shares and (0, other), evaluated at the last holder: shift all by that holder
    last = holders[-1]
    known = {x ^ last: limbs[x] for x in holders[:-1]} | {last: np.frombuffer(other, "<u2").tolist()}
    forged = np.array(slow_combine(known), "<u2").tobytes()
    assert combine({**{x: shares[x] for x in holders[:-1]}, last: forged}) == other


def test_many_secrets_combine_like_one():
    holders = [3, 9, 700, 65_535]
    rng = np.random.default_rng(5)
    secrets = [rng.bytes(32) for _ in range(50)]
    shares = [split(s, 4, holders, Seeded(i)) for i, s in enumerate(secrets)]
    stacked = np.stack([np.stack([field.from_bytes(x) for x in row]) for row in shares])
    assert [
        field.to_bytes(row) for row in combine_many(np.tile(np.array(holders, np.uint16), (50, 1)), stacked)
    ] == secrets


def test_many_secrets_with_holders_of_their_own_combine_like_one():
    rng = np.random.default_rng(6)
    rows = [rng.choice(np.arange(1, 65_536), 3, replace=False).tolist() for _ in range(40)]
    secrets = [rng.bytes(32) for _ in rows]
    shares = [split(s, 3, row, Seeded(i)) for i, (s, row) in enumerate(zip(secrets, rows, strict=True))]
    stacked = np.stack([np.stack([field.from_bytes(x) for x in row]) for row in shares])
    assert [field.to_bytes(row) for row in combine_many(np.array(rows, np.uint16), stacked)] == secrets


@pytest.mark.parametrize("t, holders", [(0, [1]), (3, [1, 2]), (1, [0, 1]), (1, [1, 1]), (1, [65_536])])
def test_thresholds_and_holders_that_make_no_sense(t, holders):
    with pytest.raises(SecAggParameterError):
        split(bytes(32), t, holders, Seeded())


def test_combining_what_does_not_fit():
    for shares in ({}, {1: b"ab", 2: b"abcd"}, {0: b"ab"}):
        with pytest.raises(ShareError):
            combine(shares)
