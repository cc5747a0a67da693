"""Simulated rounds whose devices download encoded checkpoints, through the device's session and the server's roles."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from covey.compression.checkpoint import download_num_bytes
from covey.plans.manifest import DOWNLOAD_SCHEMA
from covey.plans.plan import unpack_plan
from covey.recipes.recipe import load_recipe
from covey.simulation.resume import resumed
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.types.errors import CompressionSpecError

TINY = str(Path(__file__).parent / "tiny.py")


def chosen(spec, **settings):
    return dataclasses.replace(load_recipe(TINY).settings, download=spec, **settings)


def run(spec, workers=1, rounds=4, out=None, privacy=None, **settings):
    options = SimulationOptions(rounds=rounds, workers=workers, out=out, privacy=privacy)
    return simulate(TINY, chosen(spec, **settings), options)


def test_equal_seeds_give_equal_bits_at_any_number_of_workers():
    one, two = run("quantize:4"), run("quantize:4", workers=2)
    assert one.checkpoint == two.checkpoint != run("").checkpoint
    assert [r.bytes_down for r in one.rounds] == [r.bytes_down for r in two.rounds]


def test_what_is_counted_are_the_encoded_bytes_and_what_is_kept_is_exact(tmp_path):
    report = run("quantize:2", out=tmp_path, rounds=3)
    data = (tmp_path / "plan.covey").read_bytes()
    manifest = unpack_plan(data).manifest
    assert (manifest.download, manifest.schema) == ("quantize:2", DOWNLOAD_SCHEMA)
    assert report.traffic["down: checkpoint"] == 3 * 5 * download_num_bytes("quantize:2", manifest.params)
    assert sum(r.bytes_down for r in report.rounds) == report.bytes_down
    # The model has as many distinct values as parameters; what devices decoded has four for each tensor.
    kept = np.frombuffer((tmp_path / "checkpoint.params").read_bytes(), "<f4")
    assert len(set(kept.tolist())) == kept.size == 15


def test_float32_by_name_is_what_it_is_without_a_spec(tmp_path):
    assert run("float32", out=tmp_path).checkpoint == run("").checkpoint
    assert unpack_plan((tmp_path / "plan.covey").read_bytes()).manifest.schema < DOWNLOAD_SCHEMA


def test_devices_that_download_little_still_learn():
    assert run("quantize:3", rounds=15).rounds[-1].accuracy > 0.8


@pytest.mark.parametrize("algorithm", ["fedsgd", "scaffold", "fedadam", "mimelite", "fedbuff"])
def test_algorithms_with_phases_states_and_moments_go_on_from_the_exact_model(algorithm):
    """A parameter is decoded at most 4 / 255 off, and the loss's slope is below 1: no run ends further off."""
    settings = {"algorithm": algorithm, "rounds": 6, "lr": 0.1}
    exact, encoded = run("", **settings), run("quantize:8", **settings)
    assert exact.checkpoint != encoded.checkpoint
    assert abs(exact.rounds[-1].loss - encoded.rounds[-1].loss) < 4 / 255


def test_a_promise_of_privacy_is_written_into_such_a_plan_too(tmp_path):
    report = run("quantize:8", rounds=2, privacy="gaussian:clip=1,noise=0.3", out=tmp_path)
    assert report.rounds[-1].reported == 5
    assert unpack_plan((tmp_path / "plan.covey").read_bytes()).manifest.schema == DOWNLOAD_SCHEMA


class StopAfter(Progress):
    """Interrupts a run, as Ctrl-C would."""

    def round(self, row):
        if row.round == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbuff"])
def test_a_resumed_run_has_the_bits_of_one_in_one_piece(tmp_path, algorithm):
    settings, options = chosen("quantize:4", algorithm=algorithm), SimulationOptions(rounds=4, workers=1)
    whole = simulate(TINY, settings, options)
    with pytest.raises(KeyboardInterrupt):
        simulate(TINY, settings, dataclasses.replace(options, out=tmp_path), StopAfter())
    source, before, again = resumed(tmp_path)
    assert before.download == "quantize:4"
    report = simulate(source, before, again)
    assert report.checkpoint == whole.checkpoint and report.traffic == whole.traffic


def test_a_spec_is_refused_before_anything_starts():
    with pytest.raises(CompressionSpecError, match="quantize:B"):
        run("hd|eden:2")
