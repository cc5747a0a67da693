"""Stragglers, traces, divergence and asynchronous aggregation, through whole runs."""

import dataclasses

import pytest

from covey.plans.manifest import PrivacyTerms, SecureTerms
from covey.recipes.prepare import prepare
from covey.recipes.recipe import load_recipe
from covey.simulation.divergence import Watch
from covey.simulation.population import DevicePopulation
from covey.simulation.report import RoundRow
from covey.simulation.run import SimulationOptions, simulate
from covey.types.errors import AsynchronousError, TrainingError


def settings_of(tiny, **changes):
    return dataclasses.replace(load_recipe(tiny).settings, **changes)


def test_stragglers_beyond_the_deadline_are_not_counted_and_cost_the_round_its_time(tiny):
    population = DevicePopulation(speed_spread=1.5, seconds_per_step=10.0)
    options = SimulationOptions(rounds=4, workers=1, seed=2, population=population, report_timeout_s=60.0)
    report = simulate(tiny, settings_of(tiny, cohort=8), options)
    assert all(6 <= r.reported <= 8 for r in report.rounds)  # 70 % of eight are enough at the deadline
    assert any(r.reported < 8 for r in report.rounds)
    times = [b.at_s - a.at_s for a, b in zip(report.rounds, report.rounds[1:], strict=False)]
    assert all(t <= 60.0 * 3 for t in times)  # a deadline, and at worst two abandoned rounds before it
    whole = simulate(tiny, settings_of(tiny, cohort=8), dataclasses.replace(options, report_timeout_s=1e5))
    assert all(r.reported == 8 for r in whole.rounds) and whole.rounds[-1].at_s > report.rounds[-1].at_s


def test_a_round_waits_until_enough_devices_are_there(tiny):
    population = DevicePopulation(availability="diurnal:swing=1,hours=6")
    options = SimulationOptions(rounds=5, workers=1, population=population)
    report = simulate(tiny, settings_of(tiny, cohort=4), options)
    assert [r.reported for r in report.rounds] == [4] * 5
    assert report.rounds[-1].at_s > 5 * 1.0  # four of twelve are rarely there at once


def test_bytes_and_time_to_the_target_are_those_of_the_crossing(tiny):
    report = simulate(tiny, None, SimulationOptions(target=0.8, workers=1))
    last = report.rounds[-1]
    assert report.target_round <= last.round
    assert report.target_s <= last.at_s
    assert report.target_bytes <= report.bytes_up + report.bytes_down == sum(report.traffic.values())
    assert {"up: model", "up: header", "down: plan", "down: checkpoint"} <= set(report.traffic)


def test_asynchronous_devices_do_not_wait_for_the_slow(tiny):
    population = DevicePopulation(speed_spread=1.0, seconds_per_step=1.0)
    options = SimulationOptions(rounds=10, workers=1, population=population)
    in_rounds = simulate(tiny, settings_of(tiny, cohort=4), options)
    buffered = simulate(tiny, settings_of(tiny, cohort=4, algorithm="fedbuff:concurrency=8"), options)
    assert [r.reported for r in buffered.rounds] == [4] * 10
    assert buffered.rounds[-1].at_s < 0.7 * in_rounds.rounds[-1].at_s
    assert buffered.rounds[-1].accuracy > 0.8


def test_an_asynchronous_algorithm_is_refused_where_only_rounds_are_possible(tiny):
    recipe, settings = load_recipe(tiny), settings_of(tiny, algorithm="fedbuff")
    dataset = recipe.data(settings, 0)
    terms = PrivacyTerms(mode="secure", min_cohort=3, secure=SecureTerms(group_size=10))
    with pytest.raises(AsynchronousError, match="secure aggregation"):
        prepare(recipe, tiny, settings, terms, dataset)
    with pytest.raises(AsynchronousError, match="differential privacy"):
        simulate(tiny, settings, SimulationOptions(rounds=1, workers=1, privacy="gaussian:clip=1,noise=1"))


def test_a_run_may_go_on_where_devices_diverge_and_says_why_it_ended(tiny):
    settings = settings_of(tiny, lr=300.0, epochs=50)
    options = SimulationOptions(rounds=30, workers=1, allow_divergence=True)
    report = simulate(tiny, settings, options)
    assert len(report.rounds) < 30 and "failed" in report.stopped


def test_diverging_buffers_end_the_run(tiny):
    with pytest.raises(TrainingError, match="failed") as caught:
        simulate(
            tiny, settings_of(tiny, lr=300.0, epochs=50, algorithm="fedbuff"), SimulationOptions(rounds=60, workers=1)
        )
    assert "learning rate" in caught.value.hint


def row(number, loss):
    return RoundRow(
        round=number, accuracy=0.5, loss=loss, bytes_up=0, bytes_down=0, selected=1, reported=1, lost=0, seconds=0.0
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 23.1])
def test_a_loss_that_explodes_names_the_round_and_the_learning_rate(tiny, bad):
    watch = Watch(settings_of(tiny, lr=0.7))
    watch.observe(row(1, 2.3))
    watch.observe(row(2, None))
    watch.observe(row(3, 22.9))
    with pytest.raises(TrainingError, match=r"^round 4: ") as caught:
        watch.observe(row(4, bad))
    assert "--lr 0.7" in caught.value.hint and "--allow-divergence" in caught.value.hint


def test_what_a_round_broadcast_is_forgotten_with_it(tiny, monkeypatch):
    from covey.simulation import federation

    made = []

    class Watched(federation.MemoryStorage):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(federation, "MemoryStorage", Watched)
    counts = []
    for rounds in (6, 12):
        simulate(tiny, settings_of(tiny, algorithm="scaffold"), SimulationOptions(rounds=rounds, workers=1))
        counts.append(len(made[-1]._blobs))
    assert counts[0] == counts[1]  # a plan, and the versions that are kept: as many, however long it goes on
