"""A run that is stopped after any round and taken up again ends as if it had never stopped."""

import dataclasses
import shutil

import pytest

from covey.recipes.recipe import load_recipe
from covey.simulation.population import DevicePopulation
from covey.simulation.resume import resumed
from covey.simulation.run import Progress, SimulationOptions, simulate
from covey.simulation.rundir import read_report
from covey.types.errors import ResumeError, StorageLockedError

SLOW = DevicePopulation(
    dropout=0.15,
    speed_spread=0.7,
    seconds_per_step=3.0,
    down_mbit_per_s=0.01,
    up_mbit_per_s=0.001,
    network_spread=0.7,
    availability="intermittent:on=0.7,slot=300",
)


class StopAfter(Progress):
    """Interrupts a run, as Ctrl-C would."""

    def __init__(self, number):
        self.number = number

    def round(self, row):
        if row.round == self.number:
            raise KeyboardInterrupt


def settings_of(tiny, **changes):
    return dataclasses.replace(load_recipe(tiny).settings, **changes)


def curve(report):
    return [(r.round, r.accuracy, r.loss, r.bytes_up, r.bytes_down, r.selected,
            r.reported, r.lost, r.at_s) for r in report.rounds]  # fmt: skip


@pytest.mark.parametrize("algorithm, stop", [("fedyogi", 1), ("scaffold", 3), ("mimelite", 2), ("fedbuff", 3)])
def test_a_resumed_run_has_the_bits_of_one_in_one_piece(tiny, tmp_path, algorithm, stop):
    settings = settings_of(tiny, algorithm=algorithm, cohort=4)
    options = SimulationOptions(rounds=5, seed=3, workers=1, over_selection=1.5, population=SLOW)
    if algorithm == "fedbuff":
        options = dataclasses.replace(options, over_selection=1.0)
    whole = simulate(tiny, settings, options)
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny, settings, dataclasses.replace(options, out=tmp_path / "run"), StopAfter(stop))
    source, before, again = resumed(tmp_path / "run")
    assert (source, before, again.rounds) == (tiny, settings, 5)
    report = simulate(source, before, dataclasses.replace(again, workers=2))
    assert report.checkpoint == whole.checkpoint
    assert curve(report) == curve(whole)
    assert report.traffic == whole.traffic and report.client_steps == whole.client_steps
    assert report.device_s == whole.device_s and min(whole.device_s["upload"], whole.device_s["lost"]) > 0
    assert curve(read_report(tmp_path / "run")) == curve(whole)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbuff"])
def test_what_reports_were_so_far_is_known_after_a_resumption(tiny, tmp_path, algorithm):
    """Entropy-coded reports have no size of their own: the time of the next ones hangs on those before."""
    pytest.importorskip("constriction", reason="needs covey[entropy]")
    settings = settings_of(tiny, cohort=4, compression="hd|uniform:1", algorithm=algorithm)
    options = SimulationOptions(rounds=4, seed=3, workers=1, population=SLOW)
    whole = simulate(tiny, settings, options)
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny, settings, dataclasses.replace(options, out=tmp_path / "run"), StopAfter(2))
    report = simulate(*resumed(tmp_path / "run"))
    assert report.checkpoint == whole.checkpoint
    assert curve(report) == curve(whole) and report.device_s == whole.device_s


def test_noise_goes_on_where_it_stopped_and_every_charge_is_kept(tiny, tmp_path):
    options = SimulationOptions(rounds=4, workers=1, privacy="gaussian:clip=adaptive,start=0.5,epsilon=20")
    whole = simulate(tiny, None, options)
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny, None, dataclasses.replace(options, out=tmp_path / "run"), StopAfter(2))
    report = simulate(*resumed(tmp_path / "run"))
    assert report.checkpoint == whole.checkpoint and report.privacy == whole.privacy


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_noise_of_a_tree_and_who_rests_go_on_where_they_stopped(tiny, tmp_path, stop):
    settings = settings_of(tiny, cohort=2)
    spec = "tree:clip=1,noise=0.3,max_participation=3,min_separation=1"
    options = SimulationOptions(rounds=7, seed=2, workers=1, privacy=spec, population=SLOW)
    whole = simulate(tiny, settings, options)
    with pytest.raises(KeyboardInterrupt):
        simulate(tiny, settings, dataclasses.replace(options, out=tmp_path / "run"), StopAfter(stop))
    report = simulate(*resumed(tmp_path / "run"))
    assert report.checkpoint == whole.checkpoint and report.privacy == whole.privacy
    assert curve(report) == curve(whole)


def test_a_run_that_ended_can_be_made_longer(tiny, tmp_path):
    options = SimulationOptions(rounds=2, workers=1, out=tmp_path / "run")
    simulate(tiny, None, options)
    source, settings, again = resumed(tmp_path / "run")
    longer = simulate(source, settings, dataclasses.replace(again, rounds=4))
    assert longer.checkpoint == simulate(tiny, None, SimulationOptions(rounds=4, workers=1)).checkpoint
    assert [r.round for r in longer.rounds] == [1, 2, 3, 4]


def test_a_run_has_one_process_at_a_time(tiny, tmp_path):
    class Meddling(Progress):
        def round(self, row):
            with pytest.raises(StorageLockedError, match="no other simulation"):
                simulate(*resumed(tmp_path / "run"))

    options = SimulationOptions(rounds=2, workers=1, out=tmp_path / "run")
    report = simulate(tiny, None, options, Meddling())
    assert curve(read_report(tmp_path / "run")) == curve(report)
    source, settings, again = resumed(tmp_path / "run")
    assert len(simulate(source, settings, dataclasses.replace(again, rounds=3)).rounds) == 3  # it is free again


def test_another_configuration_is_refused_and_the_field_is_named(tiny, tmp_path):
    simulate(tiny, None, SimulationOptions(rounds=1, workers=1, out=tmp_path / "run"))
    source, settings, options = resumed(tmp_path / "run")
    changes = [
        (dataclasses.replace(settings, lr=0.2), options, "settings.lr"),
        (dataclasses.replace(settings, algorithm="fedprox"), options, "settings.algorithm"),
        (settings, dataclasses.replace(options, seed=5), "options.seed"),
        (settings, dataclasses.replace(options, population=DevicePopulation(dropout=0.5)), "options.dropout"),
        (settings, dataclasses.replace(options, population=DevicePopulation(up_mbit_per_s=1)), "options.up_mbit_per_s"),
    ]
    for asked, how, field in changes:
        with pytest.raises(ResumeError) as caught:
            simulate(source, asked, how)
        assert field in caught.value.where
    (tmp_path / "run" / "state.bin").write_bytes(b"\x93damaged")
    with pytest.raises(ResumeError, match="state"):
        simulate(source, settings, options)


def test_another_recipe_text_is_refused(tiny, tmp_path):
    own = tmp_path / "own.py"
    shutil.copy(tiny, own)
    simulate(str(own), None, SimulationOptions(rounds=1, workers=1, out=tmp_path / "run"))
    own.write_text(own.read_text() + "\n# changed\n")
    with pytest.raises(ResumeError, match="recipe_sha256"):
        simulate(*resumed(tmp_path / "run"))


def test_a_folder_without_a_run_and_one_with_a_run(tiny, tmp_path):
    with pytest.raises(ResumeError, match="none"):
        resumed(tmp_path)
    (tmp_path / "sweep" / "lr=0.1").mkdir(parents=True)
    (tmp_path / "sweep" / "lr=0.1" / "config.json").touch()
    with pytest.raises(ResumeError, match="runs in it") as caught:
        resumed(tmp_path / "sweep")
    assert f"{tmp_path / 'sweep'}/*" in caught.value.hint
    options = SimulationOptions(rounds=1, workers=1, out=tmp_path / "run")
    simulate(tiny, None, options)
    with pytest.raises(ResumeError, match="without a run") as caught:
        simulate(tiny, None, options)
    assert "--resume" in caught.value.hint


@pytest.mark.parametrize("algorithm", ["fedprox", "fedavgm", "fedadam", "fednova", "scaffold", "mimelite", "fedbuff"])
def test_algorithms_give_the_same_bits_at_any_number_of_workers_and_learn(tiny, algorithm):
    settings = settings_of(tiny, algorithm=algorithm, cohort=5, lr=0.1 if algorithm == "mimelite" else 0.3)
    if algorithm == "fedadam":
        settings = dataclasses.replace(settings, server_lr=0.1)
    one, two = (simulate(tiny, settings, SimulationOptions(rounds=12, workers=n)) for n in (1, 2))
    assert one.checkpoint == two.checkpoint and curve(one) == curve(two)
    assert one.rounds[-1].accuracy > 0.8  # three blobs: a third by guessing
