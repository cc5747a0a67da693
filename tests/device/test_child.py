"""Training in a child process: the same result, and its end when it may not go on, takes too much, or dies."""

import contextlib
import os
import signal
import threading

import numpy as np
import psutil
import pytest

from covey.device.child import ChildTrainer
from covey.device.trainer import OnnxTrainer, TrainingJob, TrainingStopped
from covey.plans.plan import unpack_plan
from covey.types.errors import OverBudgetError, TooFewExamplesError, TrainingError, WorkerError
from covey.types.tensors import unpack_tensors

from . import world


@pytest.fixture(scope="module")
def job():
    plan = unpack_plan(world.plan_bytes())
    return TrainingJob(plan, 0, unpack_tensors(plan.manifest.params, world.checkpoint()), {}, {}, bytes(32))


def children():
    """Return the processes that train: this one may have others, of another file's tests."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "covey.device.child" in child.cmdline():
                found.append(child)
    return found


def test_the_same_result_as_in_this_process(job):
    here, there = (t.run(job, world.points(20)) for t in (OnnxTrainer(), ChildTrainer()))
    assert (here.weight, here.metrics, here.num_examples, here.num_steps) == (
        there.weight,
        there.metrics,
        there.num_examples,
        there.num_steps,
    )
    for name, values in here.segments.items():
        assert np.array_equal(values, there.segments[name]) and values.dtype == there.segments[name].dtype
    assert children() == []


def test_errors_come_back_as_themselves(job):
    with pytest.raises(TooFewExamplesError):
        ChildTrainer().run(job, world.points(1))
    examples = world.points(10)
    examples["x"] = examples["x"] * np.float32(1e30)
    with pytest.raises(TrainingError) as caught:
        ChildTrainer().run(job, examples)
    assert "learning rate" in caught.value.hint


def test_it_ends_when_told(job):
    with pytest.raises(TrainingStopped):
        ChildTrainer().run(job, world.points(20), lambda: True)
    assert children() == []


def test_it_is_ended_when_it_takes_too_much(job):
    sizes = iter([0, *[job.plan.manifest.budget.memory_bytes + 1] * 10_000])
    with pytest.raises(OverBudgetError, match="as the plan says"):
        ChildTrainer(resident=lambda pid: next(sizes)).run(job, world.points(20))
    assert children() == []


def test_a_child_that_dies_is_an_error_and_no_hang(job):
    def kill():
        while not (found := children()):
            pass
        os.kill(found[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(WorkerError, match="training process: expected a result"):
        ChildTrainer().run(job, world.points(20))
    thread.join()
