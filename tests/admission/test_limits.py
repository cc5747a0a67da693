"""Token buckets: what flows in the long run, what may come at once, and how much is remembered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.admission.limits import Limits, RateLimiter, network_of
from covey.types.errors import RateLimitedError


def taken(limiter, key, now_s):
    try:
        limiter.take(key, now_s)
    except RateLimitedError as error:
        assert error.retry_after_s > 0
        return False
    return True


def test_a_burst_then_the_rate_and_it_says_when_to_come_again():
    limiter = RateLimiter(2.0, 5, 10)
    assert [taken(limiter, "a", 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert taken(limiter, "b", 0.0)  # others are not concerned
    with pytest.raises(RateLimitedError) as refused:
        limiter.take("a", 0.1)
    again_s = 0.1 + refused.value.retry_after_s
    assert again_s == pytest.approx(0.5) and not taken(limiter, "a", again_s - 0.01) and taken(limiter, "a", again_s)


@given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.5, 4), st.integers(1, 5))
def test_never_more_than_burst_and_rate(gaps, per_s, burst):
    limiter, now_s, count = RateLimiter(per_s, burst, 10), 0.0, 0
    for gap in gaps:
        now_s += gap
        count += taken(limiter, "a", now_s)
    assert count <= burst + per_s * now_s + 1e-6


def test_a_clock_that_goes_back_refills_nothing():
    limiter = RateLimiter(1.0, 1, 10)
    assert taken(limiter, "a", 100.0)
    assert not taken(limiter, "a", 0.0) and not taken(limiter, "a", 0.5) and taken(limiter, "a", 1.5)


def test_what_is_remembered_is_bounded_and_the_busy_are_kept():
    limiter = RateLimiter(0.001, 1, 100)
    assert taken(limiter, "busy", 0.0)
    for i in range(10_000):
        assert taken(limiter, f"k{i}", 0.0)
        assert not taken(limiter, "busy", 0.0)
    assert len(limiter) == 100


def test_zero_is_no_limit():
    limiter = RateLimiter(0, 1, 1)
    assert all(taken(limiter, "a", 0.0) for _ in range(1000)) and len(limiter) == 0


def test_a_houseful_of_devices_is_no_flood():
    """The demonstration enrols 24 at once from one address, again after a restart; a round is about 20 requests."""
    limits = Limits()
    enrolments = RateLimiter(limits.peer_per_s, limits.peer_burst, limits.max_entries)
    assert all(taken(enrolments, "127.0.0.1", 0.0) for _ in range(24 * 20))
    requests = RateLimiter(limits.credential_per_s, limits.credential_burst, limits.max_entries)
    assert all(taken(requests, "device", 0.5 * number) for number in range(50) for _ in range(20))


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("a name", "a name"),
        ("", ""),
    ],
)
def test_an_ipv6_network_counts_as_one(host, network):
    assert network_of(host) == network
