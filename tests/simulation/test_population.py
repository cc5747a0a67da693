import numpy as np
import pytest

from covey.simulation.population import DevicePopulation
from covey.types.errors import UsageError


def test_by_default_all_are_equal_and_nobody_drops_out():
    population = DevicePopulation()
    assert {population.session_times(0, d, 7, 10**6, 10**6) for d in range(50)} == {(0.0, 1.0, 0.0)}
    assert not any(population.drops_out(0, d, r) for d in range(50) for r in range(5))


def test_a_device_keeps_its_speed_and_time_grows_with_steps():
    population = DevicePopulation(speed_spread=0.5, seconds_per_step=0.1)

    def training_s(seed, device, steps):
        return population.session_times(seed, device, steps).training_s

    for device in range(10):
        assert training_s(3, device, 20) == pytest.approx(2 * training_s(3, device, 10))
    assert len({training_s(3, d, 10) for d in range(10)}) == 10
    assert training_s(3, 1, 10) != training_s(4, 1, 10)


def test_a_device_keeps_its_bandwidth_and_time_grows_with_bytes():
    population = DevicePopulation(down_mbit_per_s=8.0, up_mbit_per_s=2.0, network_spread=0.7)
    times = [population.session_times(3, d, 10, 10**6, 10**6) for d in range(1000)]
    # A million bytes are 1 s at 8 Mbit/s and 4 s at 2: of the median device; and the same factor for both.
    assert all(t.up_s == pytest.approx(4 * t.down_s) and t.training_s == 1.0 for t in times)
    logs = np.log([t.down_s for t in times])
    assert abs(logs.mean()) < 5 * 0.7 / np.sqrt(1000)
    assert abs(logs.std() / 0.7 - 1) < 5 / np.sqrt(2 * 1000)  # five standard deviations of either estimate
    again = population.session_times(3, 7, 10, 2 * 10**6, 0)
    assert again.down_s == pytest.approx(2 * times[7].down_s) and again.up_s == 0.0


def test_speed_and_bandwidth_are_drawn_apart():
    population = DevicePopulation(speed_spread=1.0, down_mbit_per_s=1.0, network_spread=1.0)
    times = np.array([population.session_times(0, d, 1, 10**5, 0)[:2] for d in range(2000)])
    assert abs(np.corrcoef(np.log(times).T)[0, 1]) < 5 / np.sqrt(2000)


def test_the_fraction_that_drops_out_is_the_one_asked_for():
    population, count, p = DevicePopulation(dropout=0.2), 4000, 0.2
    dropped = sum(population.drops_out(0, d, 1) for d in range(count))
    # Five standard deviations of a binomial: the seed is fixed, so this either always holds or never.
    assert abs(dropped - p * count) < 5 * np.sqrt(count * p * (1 - p))


@pytest.mark.parametrize(
    "wrong, flag",
    [
        ({"dropout": 1.0}, "--dropout"),
        ({"dropout": -0.1}, "--dropout"),
        ({"speed_spread": -1.0}, "--speed-spread"),
        ({"seconds_per_step": float("inf")}, "--seconds-per-step"),
        ({"down_mbit_per_s": -1.0}, "--down-mbit-per-s"),
        ({"down_mbit_per_s": float("nan")}, "--down-mbit-per-s"),
        ({"up_mbit_per_s": float("inf")}, "--up-mbit-per-s"),
        ({"up_mbit_per_s": 1.0, "network_spread": 5.1}, "--network-spread"),
        ({"network_spread": 0.5}, "--network-spread"),  # a spread of nothing
    ],
)
def test_values_that_make_no_sense_are_refused(wrong, flag):
    with pytest.raises(UsageError) as caught:
        DevicePopulation(**wrong)
    assert caught.value.where == flag
