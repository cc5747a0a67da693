"""The channel between a simulation and a worker: what comes out is what went in, whichever way it took."""

import multiprocessing
import os
import threading

import numpy as np
import pytest

from covey.simulation.channel import Channel, shared_memory
from covey.simulation.messages import Blobs
from covey.types.segments import SegmentSum, real_segment

LARGE = 1 << 16


@pytest.fixture
def ends():
    pipes, memory = multiprocessing.Pipe(), shared_memory()
    channels = [Channel(pipe, memory, is_worker=i == 1) for i, pipe in enumerate(pipes)]
    os.close(memory)
    yield channels
    for channel in channels:
        channel.close()


def crossed(sender, receiver, message):
    """Send and receive at once: what goes through the pipe whole may be more than it holds."""
    thread = threading.Thread(target=sender.send, args=(message,))
    thread.start()
    received = receiver.recv()
    thread.join(timeout=10)
    return received


def test_sums_and_blobs_arrive_as_they_were_and_can_be_changed(ends):
    parent, worker = ends
    shard = SegmentSum([real_segment("model", LARGE, 1.0, 10)])
    shard.fold_reals({"model": np.linspace(-0.5, 0.5, LARGE)})
    for _ in range(3):
        received = crossed(worker, parent, shard)
        received.merge(shard)
        assert received.num_folded == 2
        assert np.array_equal(received.integers("model"), 2 * shard.integers("model"))
    blob = bytes(range(256)) * 1024
    again = crossed(parent, worker, Blobs({"large": blob, "small": b"x"}, frozenset(["kept"])))
    assert {k: bytes(v) for k, v in again.blobs.items()} == {"large": blob, "small": b"x"}
    assert again.keep == {"kept"}


def test_a_message_that_comes_before_the_last_one_was_taken_does_not_overwrite_it(ends):
    parent, worker = ends
    arrays = [np.full(LARGE, i, np.int64) for i in range(3)]
    thread = threading.Thread(target=lambda: [parent.send(a) for a in arrays])
    thread.start()
    received = [worker.recv() for _ in arrays]
    thread.join(timeout=10)
    assert [set(r.tolist()) for r in received] == [{0}, {1}, {2}]


def test_large_arrays_do_not_go_through_the_pipe(ends):
    parent, worker = ends
    array = np.arange(LARGE, dtype=np.int64)
    parent.send(array)  # would block: nobody reads yet, and it is more than a pipe holds
    assert worker.connection.poll(1)
    assert len(worker.connection.recv_bytes()) < 1000


def test_who_waits_for_an_end_that_is_closed_is_told(ends):
    parent, worker = ends
    parent.close()
    with pytest.raises(EOFError):
        worker.recv()
