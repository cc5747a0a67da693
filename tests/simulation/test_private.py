"""``--privacy`` in a simulation: the same bits anywhere, a budget that is kept, limits of a tree."""

import dataclasses

import msgspec
import numpy as np
import pytest
from scipy import stats

from covey.plans.plan import unpack_plan
from covey.privacy.guarantee import guarantee_of
from covey.recipes.recipe import load_recipe
from covey.simulation.federation import Federation
from covey.simulation.promise import Promise
from covey.simulation.rest import Rest
from covey.simulation.resume import resumed
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.simulation.rundir import read_rows
from covey.types.errors import (
    BudgetExhaustedError,
    ClipMissingError,
    CompressionSpecError,
    PrivacySpecError,
    TrainingError,
    UsageError,
)
from covey.types.tensors import unpack_tensors

SPECS = [
    "gaussian:clip=1,noise=0.3",
    "gaussian:clip=adaptive,start=0.5,epsilon=20",
    "discrete-gaussian:clip=1,noise=0.3,colluders=1",
    "skellam:clip=adaptive,start=0.5,noise=0.3",
    "tree:clip=1,noise=0.3",
]


def run(tiny, spec, rounds=3, workers=1, seed=4, **options):
    return simulate(tiny, None, SimulationOptions(rounds=rounds, seed=seed, workers=workers, privacy=spec, **options))


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_seed_gives_the_same_bits_at_any_number_of_workers(tiny, spec):
    one, two = (run(tiny, spec, workers=n) for n in (1, 2))
    assert one.checkpoint == two.checkpoint
    guarantee = one.privacy
    assert guarantee == two.privacy and not guarantee.private and "not private" in guarantee.headline
    assert guarantee.rounds == 3 and 0 < guarantee.epsilon < 1e4


def test_noise_depends_on_the_seed_and_is_really_there(tiny):
    plain = run(tiny, None)
    assert plain.privacy is None
    checkpoints = {run(tiny, "gaussian:clip=1000,noise=1e-3", seed=s).checkpoint for s in (4, 5)}
    assert len({plain.checkpoint, *checkpoints}) == 3


def test_tiny_noise_and_a_wide_clip_are_federated_averaging_with_uniform_weights(tiny):
    report = run(tiny, "gaussian:clip=100,noise=0.001", rounds=6)
    assert report.rounds[-1].accuracy > 0.6  # three blobs; a third by guessing


@pytest.mark.parametrize("kind, shares", [("gaussian", 1), ("discrete-gaussian", 5 / 4), ("skellam", 5 / 4)])
def test_the_model_carries_exactly_the_promised_noise(tiny, tmp_path, kind, shares):
    """From the device's encoder to the committed checkpoint: clip 1e-5 leaves noise of sigma 100 * 1e-5 and no more."""
    first = first_params(tiny)
    squares, count = 0.0, 0
    for seed in range(4):
        run(tiny, f"{kind}:clip=1e-5,noise=100", rounds=1, seed=seed, out=tmp_path / str(seed))
        specs = unpack_plan((tmp_path / str(seed) / "plan.covey").read_bytes()).manifest.params
        after = unpack_tensors(specs, (tmp_path / str(seed) / "checkpoint.params").read_bytes())
        before = first(seed)
        for name in after:
            # Five devices came, four were promised: five shares of four. The mean is over the goal, five.
            step = (np.asarray(after[name], float) - before[name]) * 5 / (1e-3 * shares**0.5)
            squares, count = squares + float((step**2).sum()), count + step.size
    # A chi-square of 60; the five clipped updates add at most (5 * 1e-5 / 1e-3)² = 0.0025 a round to it.
    assert stats.chi2.ppf(1e-5, count) < squares < stats.chi2.isf(1e-5, count)


def first_params(tiny):
    from covey.plans.lowering.build import initial_params

    return lambda seed: initial_params(load_recipe(tiny).task(), seed)


def test_much_noise_destroys_the_model(tiny):
    assert run(tiny, "gaussian:clip=100,noise=100", rounds=6).rounds[-1].accuracy < 0.6


def test_the_promise_is_in_the_plan(tiny, tmp_path):
    run(tiny, "skellam:clip=1,noise=0.3,colluders=1,bits=24,budget=500", out=tmp_path)
    terms = unpack_plan((tmp_path / "plan.covey").read_bytes()).manifest.privacy
    noise = terms.noise
    assert (noise.kind, noise.clip, noise.colluders, noise.ring_bits, noise.budget) == ("skellam", 1.0, 1, 24, 500.0)
    assert terms.min_cohort == 4  # 70 % of five
    report = msgspec.json.decode((tmp_path / "report.json").read_bytes())
    assert report["privacy"]["assumptions"] and report["privacy"]["private"] is False


def test_a_run_beyond_the_budget_does_not_start_and_says_why(tiny):
    started = []

    class Told(Progress):
        def starting(self, *facts):
            started.append(facts)

    options = SimulationOptions(rounds=3, workers=1, privacy="gaussian:clip=1,noise=0.3,budget=2")
    with pytest.raises(BudgetExhaustedError, match="for 3 rounds") as caught:
        simulate(tiny, None, options, Told())
    assert "not started" in caught.value.hint
    assert started == []


def test_a_budget_that_is_spent_on_the_way_ends_the_run_and_does_not_wait_for_ever(tiny, tmp_path, bounded):
    """What was opened and failed is charged as well: the last rounds may find nothing left. Here the plan forgets."""
    promised = SimulationOptions(rounds=6, workers=1, privacy="gaussian:clip=1,noise=1,budget=4", out=tmp_path / "run")
    with pytest.raises(BudgetExhaustedError, match=r"^round 4: .* spent it"):
        simulate(tiny, None, promised)
    assert len(read_rows(tmp_path / "run")) == 3
    for _ in range(2):  # neither does a run that is taken up again
        with pytest.raises(BudgetExhaustedError, match=r"^round 4: .* spent it"):
            simulate(*resumed(tmp_path / "run"))
    assert bounded.calls < 50


@pytest.mark.parametrize("download", ["", "quantize:8"])
@pytest.mark.parametrize("lenient", [False, True])
def test_training_that_diverges_does_not_wait_for_ever_either(tiny, bounded, download, lenient):
    settings = dataclasses.replace(load_recipe(tiny).settings, lr=300.0, epochs=50, download=download)
    options = SimulationOptions(rounds=60, workers=1, allow_divergence=lenient)
    if lenient:
        assert simulate(tiny, settings, options).stopped
    else:
        with pytest.raises(TrainingError):
            simulate(tiny, settings, options)


@pytest.fixture
def bounded(monkeypatch):
    """Ends a run that lets time pass without end, and lets one begin whose budget cannot last."""

    class Bounded:
        calls = 0

        def gather(self, federation):
            self.calls += 1
            assert self.calls < 1000, "the federation waits for a round that will not begin"
            return gather(federation)

    bound, gather = Bounded(), Federation._gather
    monkeypatch.setattr(Federation, "_gather", lambda federation: bound.gather(federation))
    monkeypatch.setattr(
        Promise, "before", lambda own: guarantee_of(own.mechanism, own.dim, own.num_rounds, private=False)
    )
    return bound


def test_epsilon_is_for_the_sums_that_were_opened(tiny):
    report = run(tiny, "gaussian:clip=100,epsilon=2000", rounds=None, target=0.5)
    assert report.privacy.rounds == len(report.rounds) < 2000
    assert report.privacy.epsilon < 2000


@pytest.mark.parametrize(
    "spec, error",
    [("gaussian:noise=1", ClipMissingError), ("gausian:clip=1,noise=1", PrivacySpecError)],
)
def test_a_bad_spec_ends_the_command(tiny, spec, error):
    with pytest.raises(error):
        run(tiny, spec)


def test_min_survivors_above_what_commits_a_round_are_refused(tiny):
    with pytest.raises(UsageError, match="at most 4"):
        run(tiny, "skellam:clip=1,noise=0.3,min_survivors=5")


def test_a_tree_keeps_its_limits_on_participation(tiny):
    settings = dataclasses.replace(load_recipe(tiny).settings, cohort=2)
    spec = "tree:clip=1,noise=0.3,max_participation=3,min_separation=1"
    report = simulate(tiny, settings, SimulationOptions(rounds=6, workers=1, privacy=spec))
    assert len(report.rounds) == 6
    assert "at most 3 of 6 rounds, with at least 1 rounds between" in "\n".join(report.privacy.assumptions)
    with pytest.raises(UsageError, match="12 devices can fill 6 rounds"):
        simulate(tiny, None, SimulationOptions(rounds=6, workers=1, privacy=spec))


def test_rest_by_hand():
    rest = Rest(max_participation=2, min_separation=1)
    assert rest.awake([0, 1], 0) == []  # in round 1; not before two rounds are committed
    assert rest.awake([2, 3], 1) == []
    assert rest.awake([], 2) == [0, 1]
    assert rest.awake([0], 2) == []  # its second and last
    assert rest.absent() == [2, 3, 0]
    before = rest.copy()
    assert rest.awake([], 9) == [2, 3]
    assert rest.absent() == [0] and before.absent() == [2, 3, 0]
    assert Rest().awake([5, 6], 3) == [5, 6]


@pytest.mark.parametrize("spec", ["hd|eden:2", "hd|ring:24:5:3"])
def test_a_codec_that_rounds_by_itself_and_noise_do_not_mix(tiny, spec):
    with pytest.raises(CompressionSpecError, match="leaves rounding to the noise") as caught:
        run_by(tiny, spec, "gaussian:clip=1,noise=1")
    assert "ring:B:N:clip" in caught.value.hint


def test_a_ring_that_takes_its_norm_from_the_clip_needs_one(tiny):
    for privacy in (None, "none"):
        with pytest.raises(CompressionSpecError, match="differential privacy beside it"):
            run_by(tiny, "hd|ring:24:5:clip", privacy)


def run_by(tiny, compression, privacy, workers=1, rounds=3, **options):
    settings = dataclasses.replace(load_recipe(str(tiny)).settings, compression=compression)
    return simulate(
        tiny, settings, SimulationOptions(rounds=rounds, seed=4, workers=workers, privacy=privacy, **options)
    )


IN_A_RING = [
    ("hd|subsample:0.5|ring:20:5:clip:8", "discrete-gaussian:clip=1,noise=0.3,colluders=1"),
    ("mask:0.5|hd|ring:24:5:clip:8", "skellam:clip=adaptive,start=0.5,noise=0.3"),
]


@pytest.mark.parametrize("compression, privacy", IN_A_RING)
def test_noise_in_a_ring_gives_the_same_bits_at_any_number_of_workers(tiny, compression, privacy):
    one, two = (run_by(tiny, compression, privacy, workers=n) for n in (1, 2))
    assert one.checkpoint == two.checkpoint and one.privacy == two.privacy
    assert one.bytes_up == two.bytes_up and one.privacy.rounds == 3


def test_noise_in_a_ring_sends_its_bits_and_learns(tiny, tmp_path):
    """15 parameters become a block of 16, each of 16 bits in place of 32; the envelope is 11 bytes."""
    privacy = "skellam:clip=3,noise=0.1,units=64"
    plain, ring = run_by(tiny, "float32", privacy), run_by(tiny, "hd|ring:16:5:clip:20", privacy, out=tmp_path)
    assert plain.bytes_up - ring.bytes_up == 3 * 5 * (4 * 15 - 2 * 16 - 11)
    assert run_by(tiny, "hd|ring:24:5:clip:20", privacy, rounds=10).rounds[-1].accuracy > 0.8
    manifest = unpack_plan((tmp_path / "plan.covey").read_bytes()).manifest
    (segment,) = manifest.phases[0].segments
    assert segment.codec == "hd|ring:16:5:clip:20" and segment.ring.ring_bits == manifest.privacy.noise.ring_bits == 16
