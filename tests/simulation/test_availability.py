import numpy as np
import pytest

from covey.simulation.availability import DAY_S, parse_availability
from covey.simulation.population import DevicePopulation
from covey.simulation.roster import Roster
from covey.types.errors import UsageError

COUNT = 40_000
ALL = np.arange(COUNT)


def share(trace, now_s):
    return trace.at(ALL, now_s).mean()


@pytest.mark.parametrize("swing, hours", [(4.0, 8.0), (1.0, 6.0), (2.0, 12.0)])
def test_a_day_has_the_swing_and_the_hours_that_were_asked_for(swing, hours):
    trace = parse_availability(f"diurnal:swing={swing},hours={hours}").trace(COUNT, 0)
    shares = np.array([share(trace, h * DAY_S / 96) for h in range(96)])
    # Five standard deviations of a share of 40,000 devices; the windows' shares add up to the hours of a day.
    error = 5 * 0.5 / np.sqrt(COUNT)
    mean, middle = hours / 24, (swing - 1) / (swing + 1)
    assert abs(shares.mean() - mean) < error
    assert abs(shares.max() - mean * (1 + middle)) < error and abs(shares.min() - mean * (1 - middle)) < error
    assert abs(share(trace, 0.3 * DAY_S) - share(trace, 7.3 * DAY_S)) < 1e-12  # the same every day


def test_a_device_has_one_window_a_day():
    trace = parse_availability("diurnal").trace(50, 1)
    times = np.arange(0, 2 * DAY_S, 600.0)
    for device in range(50):
        there = np.array([trace.at(np.array([device]), t)[0] for t in times])
        assert np.count_nonzero(there & ~np.roll(there, 1)) == 2  # it begins once a day
        assert abs(there.mean() - 8 / 24) <= 600 / DAY_S


def test_intermittent_devices_come_and_go_independently():
    trace = parse_availability("intermittent:on=0.3,slot=100").trace(COUNT, 2)
    error = 5 * np.sqrt(0.3 * 0.7 / COUNT)
    now, soon, later = (trace.at(ALL, t) for t in (1000.0, 1001.0, 1500.0))
    assert abs(now.mean() - 0.3) < error
    assert np.mean(now != soon) < 0.02  # one in a hundred begins another slot, and most of those stay as they were
    assert abs(np.mean(now & later) - 0.09) < error
    assert parse_availability("intermittent:on=1,slot=10").trace(10, 0).at(np.arange(10), 5.0).all()


def test_a_trace_depends_on_the_seed_and_not_on_who_is_asked_about():
    made = [parse_availability("intermittent").trace(1000, s) for s in (1, 1, 2)]
    some = np.array([3, 999, 17])
    whole = made[0].at(np.arange(1000), 7777.0)
    assert (made[1].at(some, 7777.0) == whole[some]).all()
    assert (made[2].at(np.arange(1000), 7777.0) != whole).any()


@pytest.mark.parametrize(
    "text, words",
    [
        ("dirnal", "diurnal"),
        ("diurnal:swng=3", "swing"),
        ("diurnal:swing=99", "10.6"),  # (1 + sinc 1/3) / (1 - sinc 1/3)
        ("diurnal:hours=24", "below 24"),
        ("intermittent:on=0", "above 0"),
        ("intermittent:slot=x", "number"),
        ("always:on=1", "nothing"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(text, words):
    with pytest.raises(UsageError) as caught:
        DevicePopulation(availability=text)
    assert words in f"{caught.value} {caught.value.hint}"


def test_a_draw_is_uniform_whether_it_lists_or_guesses():
    trace = parse_availability("always").trace(64, 0)
    for count in (4, 40):  # few: by guessing; many: from a list
        seen = np.zeros(64)
        for number in range(400):
            roster = Roster(64, trace, 5)
            drawn = roster.draw(count, 0.0, number)
            assert len(set(drawn)) == count
            seen[drawn] += 1
        expected = 400 * count / 64
        # A chi-square of 63 with a variance below the binomial's: 140 is beyond 1 - 1e-7.
        assert ((seen - expected) ** 2 / expected).sum() < 140


def test_nobody_is_drawn_twice_until_released_and_only_those_who_are_there():
    roster = Roster(10, parse_availability("always").trace(10, 0), 1)
    first = roster.draw(6, 0.0, 0)
    assert sorted(first + roster.draw(6, 0.0, 1)) == list(range(10))
    roster.release(first[:2])
    assert sorted(roster.draw(9, 0.0, 2)) == sorted(first[:2])
    trace = parse_availability("diurnal").trace(1000, 0)
    drawn = Roster(1000, trace, 1).draw(1000, 3600.0, 0)
    assert sorted(drawn) == np.flatnonzero(trace.at(np.arange(1000), 3600.0)).tolist()
