import numpy as np
import pytest

from covey.simulation.population import DevicePopulation
from covey.types.errors import UsageError


def test_by_default_all_are_equal_and_nobody_drops_out():
    population = DevicePopulation()
    assert {population.session_s(0, d, 7) for d in range(50)} == {1.0}
    assert not any(population.drops_out(0, d, r) for d in range(50) for r in range(5))


def test_a_device_keeps_its_speed_and_time_grows_with_steps():
    population = DevicePopulation(speed_spread=0.5, seconds_per_step=0.1)
    for device in range(10):
        assert population.session_s(3, device, 20) == pytest.approx(2 * population.session_s(3, device, 10))
    assert len({population.session_s(3, d, 10) for d in range(10)}) == 10
    assert population.session_s(3, 1, 10) != population.session_s(4, 1, 10)


def test_the_fraction_that_drops_out_is_the_one_asked_for():
    population, count, p = DevicePopulation(dropout=0.2), 4000, 0.2
    dropped = sum(population.drops_out(0, d, 1) for d in range(count))
    # Five standard deviations of a binomial: the seed is fixed, so this either always holds or never.
    assert abs(dropped - p * count) < 5 * np.sqrt(count * p * (1 - p))


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"dropout": -0.1}, {"speed_spread": -1.0}, {"seconds_per_step": float("inf")}]
)
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UsageError):
        DevicePopulation(**wrong)
