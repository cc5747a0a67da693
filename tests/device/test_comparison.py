"""The parts and the decision: parts never change, and chance is taken for skill no more often than it may be."""

import itertools

import numpy as np
import pytest
from scipy import stats

from covey.device.comparison import PARTS, Part, block_losses, hashes, sign_flip_p_value, split
from covey.device.evaluate import Evaluator
from covey.types.tensors import unpack_tensors

from . import world


def test_the_parts_are_a_partition_that_only_content_decides():
    points = world.points(2000)
    parts = split(points)
    assert sum(map(len, parts.values())) == 2000
    order = np.random.default_rng(0).permutation(2000)
    shuffled = split({k: v[order] for k, v in points.items()})
    for name, (low, high) in PARTS.items():
        assert {r.tobytes() for r in parts[name].examples["x"]} == {r.tobytes() for r in shuffled[name].examples["x"]}
        # Binomial(2000, share): 5 standard deviations.
        share = high - low
        assert abs(len(parts[name]) - 2000 * share) < 5 * np.sqrt(2000 * share * (1 - share))
        assert ((parts[name].places >= 0) & (parts[name].places < 1)).all()
    fewer = split({k: v[:500] for k, v in points.items()})
    assert {r.tobytes() for r in fewer["gate"].examples["x"]} <= {r.tobytes() for r in parts["gate"].examples["x"]}


def test_equal_examples_fall_into_one_part_and_fields_count_by_name():
    points = world.points(50)
    twice = {k: np.concatenate([v, v]) for k, v in points.items()}
    places = hashes(twice)
    np.testing.assert_array_equal(places[:50], places[50:])
    np.testing.assert_array_equal(hashes(dict(reversed(points.items()))), hashes(points))
    assert len(set(places)) == 50
    assert hashes({k: v[:0] for k, v in points.items()}).shape == (0,)


@pytest.mark.parametrize("count", [1, 7, 30, 200])
def test_blocks_cover_the_part_once(count):
    points = world.points(count)
    part = Part(points, hashes(points))
    params = unpack_tensors(world.plan().manifest.params, world.checkpoint())
    evaluator = Evaluator(world.plan())
    losses = block_losses(evaluator, params, part)
    assert len(losses) == min(30, count)
    whole = evaluator.evaluate(params, points)
    sizes = np.array([len(a) for a in np.array_split(np.arange(count), len(losses))])
    # Sums of float32 in another order: a few units in the last place each.
    assert (losses * sizes).sum() == pytest.approx(whole["loss"], rel=count * 2**-22)


def exact_p_value(differences):
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    return ((signs * differences).mean(1) >= differences.mean() - 1e-15).mean()


@pytest.mark.parametrize("seed", range(5))
def test_the_p_value_is_that_of_all_sign_flips(seed):
    differences = np.random.default_rng(seed).normal(0.4, 1.0, 10)
    exact, found = exact_p_value(differences), sign_flip_p_value(differences)
    if differences.mean() <= 0:
        assert found == 1.0
    else:
        # 1,999 random flips: 5 standard deviations of a binomial share, and the 1 that is added.
        assert abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / 1999) + 1 / 2000


def test_chance_is_taken_for_skill_no_more_often_than_the_level_says():
    rng = np.random.default_rng(0)
    taken = sum(sign_flip_p_value(rng.normal(0.0, 1.0, 30)) <= 0.05 for _ in range(400))
    assert taken <= stats.binom.ppf(1 - 1e-6, 400, 0.05)


@pytest.mark.parametrize("values", [[], [0.0] * 9, [-1.0] * 9, [float("nan")] * 9, [1.0], [1.0] * 4])
def test_no_improvement_and_too_few_blocks_are_never_significant(values):
    assert sign_flip_p_value(np.array(values)) > 0.05


def test_a_clear_improvement_is():
    assert sign_flip_p_value(np.full(30, 0.1)) == 1 / 2000
