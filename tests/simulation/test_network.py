"""The network in virtual time: the bytes are those that were moved, and what they cost shows in every clock."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from covey.plans.plan import unpack_plan
from covey.recipes.recipe import load_recipe
from covey.simulation.fleet import Fleet
from covey.simulation.load import Load, loads_of
from covey.simulation.messages import Ended
from covey.simulation.population import DevicePopulation, SessionTimes
from covey.simulation.run import SimulationOptions, simulate

SLOW_NETWORK = DevicePopulation(down_mbit_per_s=0.01, up_mbit_per_s=0.002)
"""A report of 200 bytes takes the median device 0.8 s."""


def run(tiny, population=SLOW_NETWORK, rounds=3, options=None, **settings):
    changed = dataclasses.replace(load_recipe(tiny).settings, **settings)
    return simulate(
        tiny, changed, SimulationOptions(rounds=rounds, workers=1, population=population, **(options or {}))
    )


def loads_in(folder):
    return loads_of(unpack_plan((folder / "plan.covey").read_bytes()).manifest)


@pytest.mark.parametrize(
    "settings, privacy",
    [
        ({}, None),
        ({"compression": "hd|eden:2", "download": "quantize:4"}, None),
        ({"compression": "hd|subsample:0.5|quantize:3"}, None),
        ({"compression": "mask:0.5|hd|eden:1"}, None),
        ({"compression": "hd|ring:16:5:clip:20"}, "skellam:clip=3,noise=0.1,units=64"),
        ({}, "gaussian:clip=adaptive,start=0.5,noise=0.3"),
        ({"algorithm": "scaffold"}, None),
        ({"algorithm": "mimelite", "download": "quantize:8"}, None),
        ({"algorithm": "fedbuff"}, None),
    ],
)
def test_what_a_session_costs_is_what_it_moves(tiny, tmp_path, settings, privacy):
    report = run(tiny, rounds=2, options={"privacy": privacy, "out": tmp_path}, **settings)
    loads = loads_in(tmp_path)
    reports = sum(r.reported for r in report.rounds)
    assert report.bytes_up == reports * sum(load.up_bytes for load in loads)
    down = report.bytes_down - report.traffic["down: plan"]
    assert down == reports * sum(load.down_bytes for load in loads)


@pytest.mark.parametrize("spec", ["hd|uniform:1", "topk:0.3|quantize:4"])
def test_where_the_size_depends_on_the_values_it_is_that_of_the_reports_before(tiny, tmp_path, spec):
    pytest.importorskip("constriction", reason="needs covey[entropy]")
    first = run(tiny, rounds=1, options={"out": tmp_path}, compression=spec)
    (load,) = loads_in(tmp_path)
    sizes = loads_of(unpack_plan((tmp_path / "plan.covey").read_bytes()).manifest)
    assert sizes == (load,)  # a guess, but always the same
    mean = first.bytes_up / first.rounds[0].reported
    assert abs(load.up_bytes / mean - 1) < 0.1  # a few of some 200 bytes
    fleet = Fleet(np.array([4, 4]), SLOW_NETWORK, (load,), seed=0, plan_bytes=0)
    assert fleet.arrival(0, 0, 1, 0.0).times.up_s == pytest.approx(load.up_bytes / 250)
    fleet.told(1, 0, Ended(traffic={"up: model": 100}))
    fleet.told(1, 0, Ended(traffic={"up: model": 150}))
    fleet.told(1, 0, Ended("training_not_finite"))  # it sent none
    assert fleet.arrival(0, 0, 1, 0.0).times.up_s == pytest.approx(125 / 250)


def test_a_round_lasts_as_long_as_its_bytes_and_a_plan_is_downloaded_once(tiny, tmp_path):
    report = run(tiny, options={"out": tmp_path}, cohort=12)  # every device, in every round
    (load,) = loads_in(tmp_path)
    plan_bytes = (tmp_path / "plan.covey").stat().st_size
    session_s = load.down_bytes / 1250 + 1.0 + load.up_bytes / 250
    ends = [r.at_s for r in report.rounds]
    assert ends == pytest.approx([plan_bytes / 1250 + n * session_s for n in (1, 2, 3)])
    assert report.device_s["download"] == pytest.approx(12 * (plan_bytes + 3 * load.down_bytes) / 1250)
    assert report.device_s["training"] == pytest.approx(36.0)
    assert report.device_s["upload"] == pytest.approx(36 * load.up_bytes / 250)
    assert report.device_s["waiting"] == pytest.approx(0, abs=1e-6) and report.device_s["lost"] == 0


def test_the_devices_time_adds_up_to_that_of_the_rounds(tiny):
    population = dataclasses.replace(SLOW_NETWORK, network_spread=0.8, speed_spread=0.5, seconds_per_step=0.5)
    report = run(tiny, population, cohort=8)
    spent = report.device_s
    # Nobody is lost, and a round begins where the one before has ended: eight devices are busy or wait all the time.
    assert sum(spent.values()) == pytest.approx(8 * report.rounds[-1].at_s)
    assert all(spent[k] > 0 for k in ("download", "training", "upload", "waiting")) and spent["lost"] == 0


def test_without_a_network_nothing_changes_and_all_time_is_training(tiny):
    report = run(tiny, DevicePopulation())
    assert [r.at_s for r in report.rounds] == [1.0, 2.0, 3.0]
    assert {k: v for k, v in report.device_s.items() if v} == {"training": 15.0}


def test_compression_shows_in_the_time_to_accuracy(tiny):
    plain, packed = (
        simulate(
            tiny,
            dataclasses.replace(load_recipe(tiny).settings, compression=spec),
            SimulationOptions(target=0.7, rounds=30, workers=1, population=DevicePopulation(up_mbit_per_s=0.001)),
        )
        for spec in ("float32", "mask:0.5|hd|quantize:1")
    )
    assert plain.target_s and packed.target_s
    assert packed.target_s / packed.target_round < 0.95 * plain.target_s / plain.target_round


def test_the_deadline_cuts_slow_networks_and_over_selection_does_without_them(tiny):
    spread = dataclasses.replace(SLOW_NETWORK, network_spread=1.5)
    whole = run(tiny, spread, rounds=4, cohort=8, options={"seed": 2, "report_timeout_s": 1e6})
    cut = run(tiny, spread, rounds=4, cohort=8, options={"seed": 2, "report_timeout_s": 15.0})
    assert all(r.reported == 8 for r in whole.rounds) and any(r.reported < 8 for r in cut.rounds)
    assert cut.rounds[-1].at_s < whole.rounds[-1].at_s and cut.device_s["lost"] > 0 == whole.device_s["lost"]
    fast = run(tiny, spread, rounds=4, cohort=8, options={"seed": 2, "report_timeout_s": 1e6, "over_selection": 1.5})
    assert [(r.selected, r.reported) for r in fast.rounds] == [(12, 8)] * 4
    assert fast.rounds[-1].at_s < whole.rounds[-1].at_s and fast.device_s["lost"] > 0


def test_asynchronous_devices_do_not_wait_for_slow_networks(tiny):
    spread = dataclasses.replace(SLOW_NETWORK, network_spread=1.0)
    in_rounds = run(tiny, spread, rounds=10, cohort=4)
    buffered = run(tiny, spread, rounds=10, cohort=4, algorithm="fedbuff:concurrency=8")
    assert buffered.rounds[-1].at_s < 0.7 * in_rounds.rounds[-1].at_s
    assert buffered.device_s["waiting"] == 0 < in_rounds.device_s["waiting"]
    assert buffered.device_s["upload"] > 0 and buffered.device_s["download"] > 0


def test_an_asynchronous_device_downloads_the_plan_once_even_if_it_comes_again_at_once(tiny, tmp_path):
    report = run(tiny, rounds=6, algorithm="fedbuff:concurrency=2", cohort=12, options={"out": tmp_path})
    plan_bytes = (tmp_path / "plan.covey").stat().st_size
    (load,) = loads_in(tmp_path)
    sessions = sum(r.reported for r in report.rounds)
    plans = report.traffic["down: plan"] / plan_bytes
    assert plans <= 12
    assert report.device_s["download"] == pytest.approx((plans * plan_bytes + sessions * load.down_bytes) / 1250)
    assert report.bytes_down == sum(n for k, n in report.traffic.items() if k.startswith("down"))


def test_who_comes_too_late_or_comes_again_has_the_plan_and_who_gives_up_has_not(tiny, tmp_path):
    run(tiny, rounds=1, options={"out": tmp_path})
    loads = (dataclasses.replace(loads_in(tmp_path)[0], down_bytes=1000),)
    fleet = Fleet(np.array([4, 4]), DevicePopulation(down_mbit_per_s=0.008), loads, seed=0, plan_bytes=500)
    assert [fleet.arrival(0, 0, n, 0.0).times.down_s for n in (1, 2)] == [1.5, 1.0]
    leaving = DevicePopulation(dropout=1 - 1e-9, down_mbit_per_s=0.008)
    gone = Fleet(np.array([4]), leaving, loads, seed=0, plan_bytes=500)
    assert [gone.arrival(0, 0, 1, 0.0).times.down_s for _ in range(2)] == [1.5, 1.5]


def test_a_fleet_counts_what_was_moved_and_a_plan_once():
    loads = (Load(None, 5, 7),)
    fleet = Fleet(np.array([3, 4]), DevicePopulation(), loads, seed=0, plan_bytes=100)
    ended = Ended(num_steps=2, traffic={"up: model": 7, "down: checkpoint": 5})
    assert [fleet.told(1, 0, ended), fleet.told(1, 0, ended)] == [105, 5]
    assert dict(fleet.traffic) == {"down: plan": 100, "up: model": 14, "down: checkpoint": 10}
    again = Fleet(np.array([3, 4]), DevicePopulation(), loads, seed=0, plan_bytes=100)
    again.restore(fleet.state())
    assert again.state() == fleet.state()
    assert again.told(1, 0, ended) == 5 and again.told(0, 0, ended) == 105 and again.num_steps == 8


def test_a_sessions_time_is_booked_once():
    fleet = Fleet(np.array([3]), DevicePopulation(), (), seed=0, plan_bytes=0)
    times = SessionTimes(1.0, 2.0, 4.0)
    fleet.spent(times, counted=True, until_s=10.0)
    fleet.spent(times, counted=False, until_s=5.0)  # the round closed before its end
    fleet.spent(times, counted=False)
    assert fleet.device_s == {"download": 1.0, "training": 2.0, "upload": 4.0, "waiting": 3.0, "lost": 12.0}


def test_a_million_devices_with_networks_cost_three_bytes_each():
    num_examples = np.full(1_000_000, 20)
    population = DevicePopulation(up_mbit_per_s=1.0, down_mbit_per_s=5.0, network_spread=1.0, speed_spread=0.5)
    tracemalloc.start()
    fleet = Fleet(num_examples, population, (), seed=0, plan_bytes=1000)
    held, _ = tracemalloc.get_traced_memory()
    for device in fleet.draw(1000, 0.0, 1):
        population.session_times(0, device, 10, 10**6, 10**6)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3.1e6 and after < 3.5e6 and peak < 4e6
