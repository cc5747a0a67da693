"""A running job is ended from beside: where a condition lapses within a chunk, and where it takes too much memory."""

import threading

import numpy as np
import onnx.parser
import pytest

from covey.device.runtime import Graph, RunStop, RunStoppedError
from covey.device.trainer import OnnxTrainer, TrainingJob, TrainingStopped, never
from covey.device.watch import Watch, resident_bytes
from covey.plans.plan import unpack_plan
from covey.types.errors import OverBudgetError
from covey.types.tensors import unpack_tensors

from . import world

# Adds 1 to x, two thousand million times: hours, unless somebody ends it.
ENDLESS = """
<ir_version: 8, opset_import: ["" : 17]>
endless (float[64] x) => (float[64] y) {
    count = Constant <value = int64 {2000000000}> ()
    go = Constant <value = bool {1}> ()
    y = Loop (count, go, x) <body = step (int64 i, bool on, float[64] a) => (bool still, float[64] b) {
        one = Constant <value = float {1.0}> ()
        b = Add (a, one)
        still = Identity (on)
    }>
}
"""
X = {"x": np.zeros(64, np.float32)}


@pytest.fixture(scope="module")
def endless():
    return Graph(onnx.parser.parse_model(ENDLESS).SerializeToString(), "endless")


def test_a_running_graph_is_ended_from_another_thread(endless):
    stop = RunStop()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(RunStoppedError):
        endless.run(X, stop=stop)
    with pytest.raises(RunStoppedError):  # and every later one
        endless.run(X, stop=stop, shrink=True)


def test_a_lapse_within_a_chunk_ends_it(endless):
    lapsed = threading.Event()
    threading.Timer(0.05, lapsed.set).start()
    with pytest.raises(TrainingStopped), Watch(lapsed.is_set) as watch:
        endless.run(X, stop=watch.stop)


def test_what_cannot_be_asked_does_not_allow(endless):
    def broken():
        raise RuntimeError("the application's own")

    with pytest.raises(RuntimeError, match="own"), Watch(broken) as watch:
        endless.run(X, stop=watch.stop)


def test_memory_within_a_chunk_counts(endless):
    sizes = iter([1000, *[1000 + 99] * 2, *[1000 + 101] * 100])
    with (
        pytest.raises(OverBudgetError, match="at most 100 bytes"),
        Watch(never, budget_bytes=100, resident=lambda: next(sizes)) as watch,
    ):
        endless.run(X, stop=watch.stop)


def test_errors_of_the_job_itself_pass_through():
    with pytest.raises(ZeroDivisionError), Watch(never) as watch:
        watch.check()
        raise ZeroDivisionError


def test_nobody_to_ask_needs_no_thread():
    before = threading.active_count()
    with Watch(never):
        assert threading.active_count() == before


def test_a_plan_over_its_budget_is_ended_and_one_within_it_is_not(monkeypatch):
    plan = unpack_plan(world.plan_bytes())
    params = unpack_tensors(plan.manifest.params, world.checkpoint())
    job = TrainingJob(plan, 0, params, {}, {}, bytes(32))
    assert OnnxTrainer(within_budget=True).run(job, world.points(20)).num_steps == 10
    sizes = iter([10**9, *[10**9 + plan.manifest.budget.memory_bytes + 1] * 1000])
    monkeypatch.setattr(
        "covey.device.trainer.Watch.__init__.__kwdefaults__", {"budget_bytes": None, "resident": lambda: next(sizes)}
    )
    with pytest.raises(OverBudgetError):
        OnnxTrainer(within_budget=True).run(job, world.points(20))
    assert OnnxTrainer().run(job, world.points(20)).num_steps == 10


def test_a_process_has_a_size():
    assert 10**6 < resident_bytes() < 10**12
