"""Compressed rounds, through the device's session and the server's aggregator."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from covey.plans.manifest import PrivacyTerms
from covey.recipes.prepare import prepare
from covey.recipes.recipe import load_recipe
from covey.simulation.run import SimulationOptions, simulate
from covey.types.errors import CompressionSpecError, UsageError
from covey.types.tensors import unpack_tensors

TINY = str(Path(__file__).parent / "tiny.py")


def run(spec, workers=1, rounds=6, out=None, **settings):
    chosen = dataclasses.replace(load_recipe(TINY).settings, compression=spec, **settings)
    return simulate(TINY, chosen, SimulationOptions(rounds=rounds, workers=workers, out=out))


@pytest.mark.parametrize("spec", ["hd|quantize:2", "hd|eden:1", "mask:0.5|hd|eden:2", "hd|ring:16:20:50"])
def test_equal_seeds_give_equal_bits_at_any_number_of_workers(spec):
    one, two = run(spec), run(spec, workers=2)
    assert one.checkpoint == two.checkpoint
    assert [r.bytes_up for r in one.rounds] == [r.bytes_up for r in two.rounds]


def test_compressed_rounds_send_less_and_still_learn():
    plain, eden = run("float32", rounds=15), run("hd|eden:2", rounds=15)
    assert eden.bytes_up < plain.bytes_up
    assert eden.rounds[-1].accuracy > 0.8


def test_the_trainers_agree_under_a_mask(tmp_path):
    """Same masks, same order of examples: only roundings differ, 1e-4 after three rounds of a dozen steps."""
    found = []
    for trainer in ("onnx", "jax"):
        run("mask:0.4|float32", rounds=3, trainer=trainer, out=tmp_path / trainer)
        found.append(np.frombuffer((tmp_path / trainer / "checkpoint.params").read_bytes(), "<f4"))
    assert np.abs(found[0] - found[1]).max() < 1e-4


def test_one_device_moves_only_what_its_mask_trains(tmp_path):
    run("mask:0.4|float32", rounds=1, cohort=1, out=tmp_path)
    recipe = load_recipe(TINY)
    settings = dataclasses.replace(recipe.settings, compression="mask:0.4|float32", cohort=1)
    dataset = recipe.data(settings, 0)
    terms = PrivacyTerms(min_cohort=1, n_max=10_000)
    prepared = prepare(recipe, TINY, settings, terms, dataset)
    manifest = prepared.plan.manifest
    assert manifest.phases[0].trained_in_place and manifest.phases[0].shared == ()
    before = np.concatenate([v.ravel() for v in unpack_tensors(manifest.params, prepared.checkpoint).values()])
    after = np.frombuffer((tmp_path / "checkpoint.params").read_bytes(), "<f4")
    assert 0 < np.count_nonzero(after != before) <= 6  # ceil(0.4 * 15)


def test_a_mask_needs_training_on_the_device():
    with pytest.raises(UsageError, match="an algorithm that trains"):
        run("mask:0.5|float32", algorithm="fedsgd")


def test_a_spec_is_refused_before_anything_starts():
    with pytest.raises(CompressionSpecError, match="eden"):
        run("edn:2")
