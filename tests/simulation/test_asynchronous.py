"""The simulated asynchronous run and the real server's roles: the same order of arrivals, the same bits."""

import dataclasses

import numpy as np
import pytest
from server.buffers import Buffers

from covey.data.dataset import sizes_of
from covey.plans.manifest import PrivacyTerms
from covey.recipes.prepare import prepare
from covey.recipes.recipe import load_recipe
from covey.server.messages import ReportArrived
from covey.server.population import begin_population
from covey.server.settings import RoundSettings, TaskSettings
from covey.simulation.asynchronous import AsynchronousFederation
from covey.simulation.federation import owner_key
from covey.simulation.fleet import Fleet
from covey.simulation.load import loads_of
from covey.simulation.messages import Setup
from covey.simulation.population import DevicePopulation, SessionTimes
from covey.simulation.worker import Worker
from covey.storage.memory import MemoryStorage
from covey.wire.messages import Assignment, Reported

SEED, GOAL, MOVES = 5, 3, 12
SLOW = DevicePopulation(speed_spread=1.2, seconds_per_step=1.0)


class InProcess:
    """A pool of one worker in this process, which remembers every update that was sent."""

    def __init__(self, setup):
        self.worker, self.bodies = Worker(setup), {}
        answer = self.worker._answer

        def remembered(message):
            if isinstance(message, ReportArrived):
                self.bodies[message.session] = bytes(message.body)
            return answer(message)

        self.worker._answer = remembered

    def everywhere(self, message):
        return [self.worker.receive(message)]

    def scattered(self, messages):
        return ((i, self.worker.receive(m)) for i, m in enumerate(messages))


class Remembered(AsynchronousFederation):
    """A run that notes, in the order of virtual time, which sessions begin and which end with a report."""

    def _train(self, flights, attempt):
        self.events += [("end", f.serial, f.version) for f in flights]
        return super()._train(flights, attempt)


class Noting(Fleet):
    def arrival(self, device, phase, attempt, now_s):
        self.events.append(("begin", attempt, None))
        return super().arrival(device, phase, attempt, now_s)


def run_of(kind, tiny, folder, parameters, fleet_kind=Fleet):
    """Return what was prepared, the run of a kind, and its pool."""
    recipe = load_recipe(tiny)
    settings = dataclasses.replace(recipe.settings, algorithm=f"fedbuff:{parameters}", cohort=GOAL)
    dataset = recipe.data(settings, SEED)
    prepared = prepare(recipe, tiny, settings, PrivacyTerms(min_cohort=1, n_max=100), dataset)
    key = owner_key(SEED).public_key().public_bytes_raw()
    pool = InProcess(Setup(tiny, settings, SEED, prepared.plan_bytes, key, str(folder)))
    loads = loads_of(prepared.plan.manifest)
    fleet = fleet_kind(sizes_of(dataset), SLOW, loads, seed=SEED, plan_bytes=len(prepared.plan_bytes))
    kind.events = fleet.events = []
    run = kind(
        prepared.plan, prepared.plan_bytes, prepared.checkpoint, fleet, RoundSettings(goal=GOAL), pool,
        seed=SEED, on_session=lambda done, of: None,
    )  # fmt: skip
    return prepared, run, pool


@pytest.mark.parametrize("parameters", ["concurrency=6", "concurrency=8,max_staleness=2"])
def test_the_server_makes_the_same_model_of_the_same_arrivals(tiny, tmp_path, parameters):
    prepared, run, pool = run_of(Remembered, tiny, tmp_path, parameters, Noting)
    rows = [run.next_round() for _ in range(MOVES)]
    storage = MemoryStorage(keep_checkpoints=MOVES + 1)
    task = TaskSettings(RoundSettings(goal=GOAL, report_timeout_s=1e6))
    begin_population(storage, "tests", prepared.plan_bytes, "", prepared.checkpoint, task, "train")
    b = Buffers(storage)
    for kind, serial, version in run.events:
        if kind == "begin":
            b.arrive(str(serial))
            continue
        given = b.answers[str(serial)]
        assert isinstance(given, Assignment) and given.round == version + 1
        assert isinstance(b.report(given.session, pool.bodies[run._token(serial)]), Reported)
    assert len(b.rows) == MOVES
    for real, simulated in zip(b.rows, rows, strict=True):
        for field in ("round", "status", "checkpoint", "reported", "lost", "selected", "bytes_up", "metrics"):
            assert getattr(real, field) == getattr(simulated, field), field
    assert storage.blob(b.coordinator.checkpoint.sha256) == run.checkpoint
    staleness = [row.metrics["staleness"] for row in rows]
    assert max(staleness) > 1 and np.ptp(staleness) > 0  # devices did differ in speed
    bound = prepared.plan.manifest.algorithm.settings["max_staleness"]
    assert (sum(row.lost for row in rows) > 0) == bool(bound)


def test_a_device_is_in_a_buffer_once(tiny, tmp_path, monkeypatch):
    """Fast devices would fill buffers by themselves: twelve devices, of which two are a thousand times faster."""
    monkeypatch.setattr(
        DevicePopulation,
        "session_times",
        lambda self, seed, device, *load: SessionTimes(0.0, 0.001 if device < 2 else 1.0, 0.0),
    )
    inside = {}

    class Watching(AsynchronousFederation):
        def _train(self, flights, attempt):
            inside.setdefault(attempt, []).extend(f.device for f in flights)
            return super()._train(flights, attempt)

    _, run, _ = run_of(Watching, tiny, tmp_path, "concurrency=12")
    for _ in range(4):
        run.next_round()
    assert len(inside) == 4
    assert all(len(devices) == len(set(devices)) == GOAL for devices in inside.values())
