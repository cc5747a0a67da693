import dataclasses
import json
import os
import signal
import threading

import numpy as np
import psutil
import pytest

from covey.plans.plan import unpack_plan
from covey.recipes.recipe import load_recipe
from covey.simulation.population import DevicePopulation
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.types.errors import TrainingError, UsageError, WorkerError
from covey.types.tensors import unpack_tensors


def settings_of(tiny, **changes):
    return dataclasses.replace(load_recipe(tiny).settings, **changes)


def curve(report):
    return [(r.round, r.accuracy, r.loss, r.bytes_up, r.bytes_down, r.selected, r.reported) for r in report.rounds]


@pytest.mark.parametrize("trainer", ["onnx", "jax"])
def test_the_same_seed_gives_the_same_bits_at_any_number_of_workers(tiny, trainer):
    settings = settings_of(tiny, trainer=trainer)
    reports = [simulate(tiny, settings, SimulationOptions(rounds=3, seed=7, workers=n)) for n in (1, 2, 3)]
    assert len({r.checkpoint for r in reports}) == 1
    assert curve(reports[0]) == curve(reports[1]) == curve(reports[2])


def test_another_seed_gives_another_run(tiny):
    reports = [simulate(tiny, None, SimulationOptions(rounds=1, seed=s, workers=1)) for s in (1, 2)]
    assert reports[0].checkpoint != reports[1].checkpoint


def test_a_cohort_of_all_devices_with_full_batches_is_gradient_descent_on_the_union(tiny, tmp_path):
    """One round of FedAvg with E = 1, B = inf, and of FedSGD, is w - lr * grad of the mean loss over all examples."""
    recipe, lr = load_recipe(tiny), 0.3
    dataset = recipe.data(recipe.settings, 0)
    parts = [dataset.train(c) for c in dataset.client_ids]
    x, y = (np.concatenate([p[k] for p in parts]) for k in ("x", "y"))
    for algorithm in ("fedavg", "fedsgd"):
        settings = settings_of(tiny, algorithm=algorithm, cohort=12, batch_size=None, lr=lr)
        out = tmp_path / algorithm
        simulate(tiny, settings, SimulationOptions(rounds=1, workers=1, out=out))
        specs = unpack_plan((out / "plan.covey").read_bytes()).manifest.params
        after = unpack_tensors(specs, (out / "checkpoint.params").read_bytes())
        before = first_params(tiny, settings)
        w, b = (np.asarray(before[k], np.float64) for k in ("w", "b"))
        logits = x @ w + b
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        expected = {"w": w - lr * x.T @ p / len(y), "b": b - lr * p.mean(0)}
        for name in ("w", "b"):
            # Float32 sums of at most 14 examples a device: 14 roundings and a few in the softmax, on values below 4.
            assert np.abs(after[name] - expected[name]).max() < 64 * np.finfo(np.float32).eps * 4


def first_params(tiny, settings):
    from covey.plans.lowering.build import initial_params

    return initial_params(load_recipe(tiny).task(), 0)


def test_training_learns_and_stops_at_the_target(tiny):
    report = simulate(tiny, None, SimulationOptions(target=0.7, workers=1))
    assert report.target_round is not None
    assert report.rounds[-1].accuracy >= 0.7
    assert all(r.accuracy < 0.7 for r in report.rounds[:-1])
    assert report.target_round <= report.rounds[-1].round


def test_rounds_that_are_not_evaluated_have_no_accuracy(tiny):
    report = simulate(tiny, None, SimulationOptions(rounds=5, eval_every=2, workers=1))
    assert [r.accuracy is None for r in report.rounds] == [True, False, True, False, False]


def test_devices_that_drop_out_are_counted_as_lost_and_change_no_bit_elsewhere(tiny):
    options = SimulationOptions(rounds=6, workers=1, over_selection=1.6, population=DevicePopulation(dropout=0.25))
    first, again = simulate(tiny, None, options), simulate(tiny, None, dataclasses.replace(options, workers=2))
    assert first.checkpoint == again.checkpoint
    assert curve(first) == curve(again)
    assert all(r.selected == 8 and r.reported <= 5 and r.lost == r.selected - r.reported for r in first.rounds)


def test_late_devices_are_not_trained(tiny):
    """Of eight that are selected five are counted; the work of the other three is never done."""
    report = simulate(tiny, None, SimulationOptions(rounds=2, workers=1, over_selection=1.6))
    assert [(r.selected, r.reported, r.lost) for r in report.rounds] == [(8, 5, 3)] * 2
    assert report.client_steps <= 2 * 5 * 4  # the largest device has 14 examples: 4 steps of 4


def test_a_plan_is_downloaded_once_and_a_checkpoint_in_every_session(tiny, tmp_path):
    settings = settings_of(tiny, cohort=12)
    report = simulate(tiny, settings, SimulationOptions(rounds=2, workers=2, out=tmp_path))
    plan, checkpoint = ((tmp_path / n).stat().st_size for n in ("plan.covey", "checkpoint.params"))
    assert [r.bytes_down for r in report.rounds] == [12 * (plan + checkpoint), 12 * checkpoint]
    assert report.rounds[0].bytes_up == report.rounds[1].bytes_up > 12 * checkpoint


def test_divergence_names_the_round_and_the_cause(tiny):
    with pytest.raises(TrainingError, match=r"^round \d+: .*failed") as caught:
        simulate(tiny, settings_of(tiny, lr=300.0, epochs=50), SimulationOptions(rounds=50, workers=2))
    assert "learning rate" in caught.value.hint


def test_a_cohort_larger_than_the_population_is_refused(tiny):
    with pytest.raises(UsageError, match="12 devices"):
        simulate(tiny, settings_of(tiny, cohort=13), SimulationOptions(rounds=1))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {"rounds": 0}),
        ({}, {"workers": 0}),
        ({}, {"target": 97.0}),
        ({}, {"eval_every": 0}),
        ({"cohort": 0}, {}),
        ({"lr": -1.0}, {}),
        ({"batch_size": 0}, {}),
        ({"epochs": 0}, {}),
        ({"trainer": "torch"}, {}),
        ({"algorithm": "fedmagic"}, {}),
    ],
)
def test_what_cannot_work_is_refused(tiny, settings, options):
    with pytest.raises(UsageError):
        simulate(tiny, settings_of(tiny, **settings), SimulationOptions(**{"rounds": 1, "workers": 1, **options}))


def test_a_run_directory_holds_the_plan_the_curve_the_model_and_the_report(tiny, tmp_path):
    report = simulate(tiny, None, SimulationOptions(rounds=2, workers=1, out=tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    written = json.loads((tmp_path / "run" / "report.json").read_text())
    assert rows == written["rounds"] and len(rows) == 2
    assert unpack_plan((tmp_path / "run" / "plan.covey").read_bytes()).hash == report.plan == written["plan"]


def test_a_worker_that_is_killed_is_an_error_and_no_process_is_left(tiny):
    class Kill(Progress):
        def round(self, row):
            if row.round == 1:
                # By name: other tests may have left a helper of multiprocessing in this process.
                workers = [p for p in psutil.Process().children() if "covey.simulation" in p.cmdline()]
                os.kill(workers[0].pid, signal.SIGKILL)

    before = threading.active_count()
    with pytest.raises(WorkerError, match="worker"):
        simulate(tiny, None, SimulationOptions(rounds=500, workers=2), Kill())
    assert not [p for p in psutil.Process().children() if "covey.simulation" in p.cmdline()]
    assert threading.active_count() == before
