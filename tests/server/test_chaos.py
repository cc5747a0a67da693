"""A short chaos in both modes (``python -m benchmarks.chaos`` is the long one); and its judge finds what is wrong."""

import functools
import signal

import numpy as np
import pytest

from benchmarks import chaos, probe
from benchmarks.watched import WatchedDevice
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.storage.interface import PopulationRecord
from covey.storage.sqlite import SqliteStorage
from covey.testing.storage import task_of
from covey.types.tensors import pack_tensors, unpack_tensors
from covey.wire.messages import Assignment, BlobRef, RoundSummary

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

NOBODY = BlobRef(sha256="00" * 32, num_bytes=0, path="")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
# A server that dies between a connection and its handshake makes CPython 3.11 leave the socket to the collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_every_committed_sum_is_exactly_that_of_the_devices_it_names(secure, tmp_path):
    done = chaos.run(tmp_path, secure=secure, lasts_s=8.0, kill_every_s=3.0, seed=1)
    assert done.wrong == [] and done.exact >= 1
    assert done.events["server killed"] >= 1 and done.events["requests"] > 50
    assert all(chaos.GOAL // 2 <= size <= chaos.NUM_DEVICES for size in done.sizes)
    assert (tmp_path / "server.log").read_text() == ""  # no word of what failed: no device is named, and no bug shown


# The judge, with sums of its own making


@functools.cache
def plan():
    return probe.ProbePlan(4, secure=False)


@pytest.fixture
def trained():
    """Four devices that have trained for one attempt, and one that has for two."""
    out, manifest = [], plan().plan.manifest
    params = unpack_tensors(manifest.params, plan().checkpoint)
    for number in range(4):
        device = WatchedDevice(OnnxTrainer())
        for attempt in ("11" * 32, "22" * 32)[: 1 + (number == 0)]:
            device.assignment = Assignment(
                session="s", round=1, phase=0, plan=NOBODY, signature="", checkpoint=NOBODY, public_seed=attempt,
                report_within_s=1.0,
            )  # fmt: skip
            seed = bytes.fromhex(attempt)[:31] + bytes([number])
            device.run(TrainingJob(plan().plan, 0, params, {}, {}, seed), probe.examples(number, 4))
        out.append(device)
    return out


def judged(trained, updates, tmp_path, reported):
    """Let the judge see a round whose checkpoint is what ``updates`` lead to."""
    manifest = plan().plan.manifest
    before = unpack_tensors(manifest.params, plan().checkpoint)
    storage = SqliteStorage(tmp_path / "data")
    first = storage.put_blob(plan().checkpoint)
    storage.create(PopulationRecord(probe.POPULATION, 0, first))
    storage.add_task(task_of(population=probe.POPULATION))
    after = chaos.applied(manifest, updates, before, "11" * 32)
    counts = {"selected": 4, "lost": 4 - reported, "seconds": 1.0, "bytes_down": 0, "bytes_up": 0}
    row = RoundSummary(
        round=1, status="committed", reported=reported, metrics={"cost": 1.0}, checkpoint=storage.put_blob(after),
        task="train", **counts,
    )  # fmt: skip
    storage.commit_round(probe.POPULATION, row, after, b"")
    storage.close()
    plan().write(tmp_path, "")
    done = chaos.Chaos()
    chaos._judge(done, manifest, trained, tmp_path)
    return done


def one(device, attempt="11" * 32):
    return device.updates[attempt]


def test_the_judge_accepts_a_right_sum(trained, tmp_path):
    done = judged(trained, [one(trained[i]) for i in (3, 0, 1)], tmp_path, 3)
    assert (done.exact, done.wrong, done.sizes) == (1, [], [3])


@pytest.mark.parametrize(
    ("pick", "reported", "words"),
    [
        (lambda t: [one(t[0]), one(t[0]), one(t[1])], 3, "are counted"),
        (lambda t: [one(t[0]), one(t[1]), one(t[2])], 4, "are counted"),
        (lambda t: [one(t[0], "22" * 32), one(t[1]), one(t[2])], 3, "not the sum"),
        (lambda t: [{k: v * np.float32(1.0001) for k, v in one(t[0]).items()}, one(t[1]), one(t[2])], 3, "not the sum"),
    ],
    ids=["a device twice", "one too many reported", "an update of another attempt", "a number that is a little off"],
)
def test_the_judge_finds_what_is_wrong(pick, reported, words, trained, tmp_path):
    done = judged(trained, pick(trained), tmp_path, reported)
    assert done.exact == 0 and words in done.wrong[0]


def test_the_model_names_its_devices():
    manifest = plan().plan.manifest
    before = unpack_tensors(manifest.params, plan().checkpoint)
    after = {**before, "probe": before["probe"] + np.float32(probe.MOVES / 2) * np.array([1, 0, 1, 0], np.float32)}
    assert probe.counted(before, after, 2).round(4).tolist() == [1.0, 0.0, 1.0, 0.0]
    assert pack_tensors(after, manifest.params) != plan().checkpoint
