import numpy as np
import pytest

from covey.simulation.minimal_filtering import MAX_TAPS, minimal_filter, num_outputs, transposed


@pytest.mark.parametrize("taps", range(2, MAX_TAPS + 1))
@pytest.mark.parametrize("outputs", [2, 4])
def test_a_filter_is_the_sum_that_it_stands_for(outputs, taps):
    rng = np.random.default_rng(outputs * 10 + taps)
    d, g = rng.integers(-9, 10, outputs + taps - 1), rng.integers(-9, 10, taps)
    f = minimal_filter(outputs, taps)
    got = np.array(f.outputs).T @ ((np.array(f.taps) @ g) * (np.array(f.inputs) @ d))
    # Entries up to 21 and 8, sums of at most eight terms of at most 9: rounding stays under 1e-9 by far.
    assert np.abs(got - np.correlate(d, g, "valid")).max() < 1e-9


def test_the_matrices_of_lavin_and_gray():
    """F(2, 3) of section 4.1, up to the order and the signs of the products."""
    f = minimal_filter(2, 3)
    assert f.inputs == ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))
    assert f.taps == ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
    assert transposed(f.outputs) == ((1, 1, 1, 0), (0, 1, -1, 1))


def test_blocks_are_chosen_by_the_number_of_products():
    assert num_outputs(14, 5) == 4  # 4 blocks of 8 products; 7 of 6
    assert num_outputs(2, 5) == 2
    assert num_outputs(6, 3) == 2  # 3 blocks of 4 are no more than 2 of 6, and lose fewer digits
