"""Compressed rounds, through the device's session and the server's aggregator."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from covey.compression.codec import codec_named, segment_seed
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.device.update import drawn_structure
from covey.plans.manifest import BASIS, PrivacyTerms
from covey.recipes.prepare import prepare
from covey.recipes.recipe import load_recipe
from covey.simulation.run import SimulationOptions, simulate
from covey.types.errors import CompressionSpecError, UsageError
from covey.types.tensors import unpack_tensors
from covey.wire.messages import Assignment, BlobRef

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


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The tiny recipe with 200 features: 603 parameters, two rows of 256 and 91 values."""
    path = tmp_path_factory.mktemp("wide") / "wide.py"
    sizes = "NUM_CLIENTS, NUM_FEATURES, NUM_CLASSES = 12, "
    path.write_text(Path(TINY).read_text().replace(f"{sizes}4, 3", f"{sizes}200, 3"))
    return str(path)


def test_low_rank_moves_only_in_its_directions(wide):
    """One device's whole update is B A^T: nothing of it is lost by sending B, but float32's rounding of parameters."""
    spec, recipe = "lowrank:64|float32", load_recipe(wide)
    dataset = recipe.data(recipe.settings, 0)
    settings = dataclasses.replace(recipe.settings, compression=spec)
    plan = prepare(recipe, wide, settings, PrivacyTerms(min_cohort=1, n_max=100), dataset).plan
    phase, specs = plan.manifest.phases[0], plan.manifest.params
    assert phase.trained_in_place and phase.shared == ()
    examples, told = dataset.train(dataset.client_ids[0]), trial_assignment()
    job = TrainingJob(plan, 0, zeros(specs), drawn_structure(plan.manifest, told), {}, bytes(32))
    model, codec = OnnxTrainer().run(job, examples).segments["model"], codec_named(spec)
    seed = segment_seed(codec, round_seed=told.public_seed, session=told.session, segment="model")
    back = codec.decode(codec.encode(model, seed, None), model.size, seed)
    assert np.count_nonzero(model) == 603 and np.linalg.norm(model[:512]) > 0.1
    assert np.linalg.norm(back - model) <= 1e-5 * np.linalg.norm(model)
    job = TrainingJob(plan, 0, zeros(specs), {BASIS: np.zeros((256, 64), np.float32)}, {}, bytes(32))
    still = OnnxTrainer().run(job, examples).segments["model"]
    assert not still[:512].any() and still[512:].all()  # without directions nothing moves but what is left of a row


def trial_assignment():
    none = BlobRef(sha256="0" * 64, num_bytes=1, path="/")
    return Assignment(
        session="s",
        round=1,
        phase=0,
        plan=none,
        signature="",
        checkpoint=none,
        public_seed="ab" * 32,
        report_within_s=1.0,
    )


def zeros(specs):
    return {s.name: np.zeros(s.shape, np.float32) for s in specs}


def run_wide(wide, spec, **options):
    settings = {k: options.pop(k) for k in ("trainer", "server_lr") if k in options}
    chosen = dataclasses.replace(load_recipe(wide).settings, compression=spec, lr=0.05, **settings)
    return simulate(wide, chosen, SimulationOptions(workers=1, **options))


def test_low_rank_learns_and_the_trainers_agree(wide, tmp_path):
    """A quarter of the directions. Engines differ by roundings: 1e-4 in three rounds."""
    found = []
    for trainer in ("onnx", "jax"):
        run_wide(wide, "lowrank:64|float32", rounds=3, trainer=trainer, out=tmp_path / trainer)
        found.append(np.frombuffer((tmp_path / trainer / "checkpoint.params").read_bytes(), "<f4"))
    assert np.abs(found[0] - found[1]).max() < 1e-4
    report = run_wide(wide, "lowrank:64|float32", rounds=40, eval_every=40)
    assert report.rounds[-1].accuracy > 0.5  # three blobs in noise of 200 dimensions; a third by guessing


def test_low_rank_composes_with_a_ring_and_noise(wide):
    """A device's basis is then the round's: what two devices send can be added before it is undone."""
    report = run_wide(wide, "lowrank:64|hd|ring:24:5:clip", rounds=2, privacy="skellam:clip=1,noise=0.3")
    sent = codec_named("lowrank:64|hd|ring:24:5:clip").projection(603).num_values
    assert sent == 256  # 2 x 64 + 91 values, in one block
    assert 2 * 5 * sent * 3 < report.bytes_up < 2 * 5 * (sent * 3 + 200)


def test_low_rank_refuses_a_local_optimizer_that_would_leave_its_directions():
    with pytest.raises(UsageError, match="sgd or momentum"):
        run("lowrank:8", optimizer="adam")


def test_a_mask_needs_training_on_the_device():
    for spec in ("mask:0.5|float32", "lowrank:8|float32"):
        with pytest.raises(UsageError, match="an algorithm that trains"):
            run(spec, algorithm="fedsgd")


def test_a_spec_is_refused_before_anything_starts():
    with pytest.raises(CompressionSpecError, match="eden"):
        run("edn:2")
