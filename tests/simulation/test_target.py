import pytest

from covey.simulation.target import monotone, target_round


def test_the_curve_takes_the_best_value_so_far():
    assert monotone([0.5, 0.4, 0.6, 0.6, 0.1]) == [0.5, 0.5, 0.6, 0.6, 0.6]
    assert monotone([]) == []


@pytest.mark.parametrize(
    ("rounds", "accuracies", "target", "expected"),
    [
        ([1, 2, 3], [0.2, 0.4, 0.8], 0.6, 2.5),  # halfway between rounds 2 and 3
        ([1, 2, 3], [0.2, 0.4, 0.8], 0.8, 3.0),
        ([1, 2, 3], [0.9, 0.1, 0.1], 0.9, 1.0),
        ([5, 10, 20], [0.5, 0.5, 0.75], 0.625, 15.0),  # rounds that were not evaluated are between points
        ([1, 2, 3], [0.5, 0.2, 0.7], 0.6, 2.5),  # the dip counts as its predecessor
        ([1, 2], [0.1, 0.2], 0.3, None),
        ([], [], 0.3, None),
    ],
)
def test_the_target_is_crossed_where_the_line_says(rounds, accuracies, target, expected):
    found = target_round(rounds, accuracies, target)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))
