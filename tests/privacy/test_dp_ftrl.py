import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.privacy.discrete_gaussian import DiscreteGaussian
from covey.privacy.dp_ftrl import TreeNoise, tree_sensitivity_squared
from covey.types.errors import PrivacyError
from privacy.sources import seeded


def nodes(num_rounds):
    """Return every complete node of the forest as a range of rounds."""
    start, out = 0, []
    for level in reversed(range(num_rounds.bit_length())):
        if num_rounds >> level & 1:
            out += [
                range(start + i * (1 << k), start + (i + 1) * (1 << k))
                for k in range(level + 1)
                for i in range(1 << (level - k))
            ]
            start += 1 << level
    return out


def by_enumeration(num_rounds, most, separation):
    best, forest = 0, nodes(num_rounds)
    for count in range(1, min(most, num_rounds) + 1):
        for chosen in itertools.combinations(range(num_rounds), count):
            if all(b - a > separation for a, b in itertools.pairwise(chosen)):
                best = max(best, sum(sum(x in node for x in chosen) ** 2 for node in forest))
    return best


@given(st.integers(1, 11), st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_sensitivity_by_enumeration(num_rounds, most, separation):
    assert tree_sensitivity_squared(num_rounds, most, separation) == by_enumeration(num_rounds, most, separation)


@pytest.mark.parametrize(
    "arguments, published",
    # tensorflow/privacy, tree_aggregation_accountant_test.py; the last but one beats the paper's greedy choice.
    [((8, 1, 7), 4), ((9, 3, 3), 11), ((7, 3, 2), 9), ((24, 8, 2), 88), ((8, 200, 0), 120)],
)
def test_sensitivity_as_published(arguments, published):
    assert tree_sensitivity_squared(*arguments) == published


@pytest.mark.parametrize("bad", [(0, 1, 0), (5, 0, 0), (5, 1, -1)])
def test_counts_are_counts(bad):
    with pytest.raises(PrivacyError, match="at least 1"):
        tree_sensitivity_squared(*bad)


def test_noise_is_that_of_the_tree():
    sigma, dim, rounds = 50.0, 40_000, 8
    tree, source = TreeNoise(DiscreteGaussian(sigma), dim), seeded("tree")
    prefixes = np.cumsum([tree.next_round(source) for _ in range(rounds)], axis=0) / sigma
    # Honaker: a complete tree of height h has variance v_h = 1 / (1 + 1 / (2 v_{h-1})); a forest, their sum.
    v = [1.0]
    for _ in range(3):
        v.append(1 / (1 + 1 / (2 * v[-1])))
    wanted = [sum(v[k] for k in range(4) if (t + 1) >> k & 1) for t in range(rounds)]
    # A sample variance of 40,000 normal draws deviates by sqrt(2 / 40000) of itself; six of them.
    assert prefixes.var(axis=1) == pytest.approx(wanted, rel=6 * (2 / dim) ** 0.5)
    assert tree.num_rounds == rounds
    # Independent trees of the forest: rounds 1-4 and 5-6 share no node, so prefix 6 minus prefix 4 owes 4 nothing.
    assert abs(np.corrcoef(prefixes[3], prefixes[5] - prefixes[3])[0, 1]) < 6 / dim**0.5
