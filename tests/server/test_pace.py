"""Laws of pace steering, whatever the clock does; and what it does to populations, on a virtual clock."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.server.pace import DAY_S, PaceSettings, PaceSteering
from covey.simulation.checkins import Activity, CheckIns, CheckInSettings, FixedRetry

NOW_S = 1.7e9
CLOCKS = st.lists(
    st.tuples(
        st.sampled_from(["checkin", "reconnect", "round"]),
        st.one_of(st.floats(-100.0, 400.0), st.floats(-3 * DAY_S, 3 * DAY_S), st.floats(-2e9, 2e9)),
    ),
    max_size=200,
)


class Chance:
    """Says what the test wants."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


def steering(**fields):
    return PaceSteering(PaceSettings(**{"wanted": 10, "poll_s": 20.0, "least_s": 60.0, **fields}))


@given(
    steps=CLOCKS,
    wanted=st.integers(1, 1000),
    bounds=st.tuples(st.floats(0.05, DAY_S), st.floats(0.05, DAY_S)).map(sorted),
    seed=st.integers(0, 9),
)
def test_an_answer_is_within_its_bounds_whatever_the_clock_does(steps, wanted, bounds, seed):
    least_s, most_s = bounds
    pace, chance, now_s = steering(wanted=wanted, least_s=least_s, most_s=most_s), random.Random(seed), NOW_S
    for what, forward_s in steps:
        now_s = max(0.0, now_s + forward_s)
        if what == "checkin":
            pace.observe_checkin(now_s)
        elif what == "round":
            pace.observe_round(now_s, wanted=wanted, at_least=wanted, lasts_s=abs(forward_s))
        else:
            assert least_s <= pace.reconnect_after_s(now_s, chance) <= most_s


@given(moments=st.lists(st.floats(0, 200.0), min_size=2, max_size=50).map(sorted), value=st.floats(0, 0.999))
def test_of_a_small_population_who_asks_later_comes_no_earlier(moments, value):
    pace = steering(wanted=1000)
    due = [NOW_S + t + pace.reconnect_after_s(NOW_S + t, Chance(value)) for t in moments]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(due))


def test_a_small_population_comes_together():
    pace, chance = steering(wanted=100), random.Random(0)
    asked = [NOW_S + 0.1 * i for i in range(90)]
    due = [t + pace.reconnect_after_s(t, chance) for t in asked]
    assert max(due) - min(due) <= 10.0  # half of what a check-in is held: the first is there when the last comes


def test_a_small_population_comes_when_the_round_at_hand_is_over():
    pace, chance = steering(wanted=100), random.Random(0)
    pace.observe_round(NOW_S, wanted=100, at_least=100, lasts_s=600.0)
    due = [NOW_S + 5 + pace.reconnect_after_s(NOW_S + 5, chance) for _ in range(50)]
    assert min(due) >= NOW_S + 600 and max(due) <= NOW_S + 600 + 60 + 10


def test_a_large_population_is_spread_so_that_the_wanted_number_waits():
    pace, chance = steering(wanted=10), random.Random(0)
    due = np.array([pace.reconnect_after_s(NOW_S, chance) for _ in range(20_000)])
    per_poll = np.histogram(due, bins=np.arange(300.0, due.max() - 300.0, 20.0))[0]
    # 10 wanted with a margin of 1.3: 13 within the 20 s that each of them waits.
    assert abs(per_poll.mean() - 13) < 0.5 and per_poll.max() < 13 + 6 * 13**0.5


def test_a_day_that_is_booked_up_is_booked_evenly():
    pace, chance = steering(wanted=1), random.Random(0)
    due = np.array([pace.reconnect_after_s(NOW_S, chance) for _ in range(50_000)])
    hours = np.histogram(due, bins=np.linspace(300.0, DAY_S - 120.0, 24))[0]
    assert due.max() <= DAY_S and hours.max() / hours.min() < 1.1


@pytest.mark.parametrize("jump_s", [-120.0, -2 * DAY_S, -NOW_S + 100.0, 2 * DAY_S, 1e9])
def test_after_a_jump_of_the_clock_it_goes_on(jump_s):
    pace, chance = steering(wanted=100), random.Random(0)
    pace.observe_round(NOW_S, wanted=100, at_least=100, lasts_s=60.0)
    for _ in range(50):
        pace.reconnect_after_s(NOW_S, chance)
    now_s = NOW_S + jump_s
    # No longer than to the second next slot, and what the clock was set back by.
    assert max(pace.reconnect_after_s(now_s, chance) for _ in range(50)) <= 60 + 120 + 10 + 120


def test_memory_does_not_grow():
    pace, chance = steering(least_s=1.0), random.Random(0)
    for i in range(5000):
        pace.observe_checkin(NOW_S + 97.0 * i)
        pace.reconnect_after_s(NOW_S + 97.0 * i, chance)
    assert len(pace._book.booked) <= 1440 and len(pace._hours) == 24


# Populations on a virtual clock: the same as `python -m benchmarks.pace`, smaller.


def simulated(num_devices, wanted, days, pace=None, away_s=None, peak_s=0.0):
    sizes = CheckInSettings(num_devices, wanted, **({"away_s": away_s} if away_s else {}))
    activity = Activity(mean=0.4, highest_to_lowest=4.0, peak_s=peak_s)
    record = CheckIns(
        sizes, activity, pace or PaceSteering(PaceSettings(wanted=wanted)), np.random.default_rng(0), random.Random(0)
    )
    record.run(days)
    return record


def test_a_population_that_swings_fourfold_checks_in_at_a_flat_rate_and_fills_every_round():
    record = simulated(20_000, 8, 5)
    day = np.array(record.per_minute[-1440:]).reshape(24, 60).mean(axis=1)
    fixed = simulated(20_000, 8, 1, FixedRetry(3600.0))
    naive = np.array(fixed.per_minute[-1440:]).reshape(24, 60).mean(axis=1)
    assert naive.max() / naive.min() > 2.5  # that is the swing, seen by a server that does not steer
    assert day.max() / day.mean() < 1.4 and day.max() / day.min() < 2.0
    needed_per_minute = 8 * 1.3 * 60 / 25
    assert day.mean() < 1.25 * needed_per_minute < naive.mean()
    began = np.array(record.began_s)
    assert (began > 4 * DAY_S).sum() > 0.9 * DAY_S / 122.5


def test_a_small_population_meets_where_a_fixed_pause_never_lets_it():
    rounds = [len(simulated(300, 100, 2, pace).began_s) for pace in (None, FixedRetry(60.0))]
    assert rounds[0] >= 100 and rounds[1] <= 10


def test_after_an_outage_no_herd_comes():
    noon_s = 0.5 * DAY_S
    after = int((noon_s + 3600.0) // 60) + 10  # those who came back at once have been told by then
    herd, spread = (
        np.array(simulated(10_000, 4, 1, pace, (noon_s, noon_s + 3600.0)).per_minute)[after : after + 120]
        for pace in (FixedRetry(3600.0), None)
    )
    assert herd.max() > 4 * np.median(herd) and spread.max() < 3 * np.median(spread)


def test_a_population_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no process"):
        Activity(mean=0.9, highest_to_lowest=4.0)


@settings(max_examples=20)
@given(at_s=st.floats(0, DAY_S), seed=st.integers(0, 99))
def test_the_share_of_free_devices_is_what_was_asked_for(at_s, seed):
    activity = Activity(mean=0.4, highest_to_lowest=4.0)
    rng, count = np.random.default_rng(seed), 4000
    # Devices that were free or busy long ago: after eight relaxation times nothing of that is left.
    told = np.full(count, at_s)
    free = activity.next_free_s(told, told + 8 * 3600.0, rng) == told + 8 * 3600.0
    share = float(activity.share(np.array([at_s + 8 * 3600.0]))[0])
    assert abs(free.mean() - share) < 5 * (share * (1 - share) / count) ** 0.5 + 1e-3
