"""Evaluate a model on a simulation's workers: on the held-out examples of all, and device by device."""

import numpy as np

from covey.data.dataset import FederatedDataset
from covey.simulation.messages import Evaluate, EvaluateDevice
from covey.simulation.pool import WorkerPool
from covey.simulation.report import accuracy_and_loss
from covey.types.rng import generator

__all__ = ["Evaluation"]

_NUM_PIECES = 16
_MOST_DEVICES = 200


class Evaluation:
    """The held-out examples of a data set, cut into pieces of whole batches. Same bits at any number of workers."""

    def __init__(self, pool: WorkerPool, dataset: FederatedDataset, batch_size: int) -> None:
        self._pool = pool
        self._num_devices = len(dataset.client_ids)
        held_out = dataset.pooled_test()
        count = len(next(iter(held_out.values()))) if held_out else 0
        size = -(-count // (_NUM_PIECES * batch_size)) * batch_size
        self._pieces = [(start, min(start + size, count)) for start in range(0, count, size)] if count else []

    def pooled(self, params: bytes) -> tuple[float | None, float | None]:
        """Return accuracy and loss on the held-out examples of all. The pieces are added in order."""
        if not self._pieces:
            return None, None
        answers = dict(self._pool.scattered([Evaluate(params, *piece) for piece in self._pieces]))
        sums: dict[str, float] = {}
        for index in sorted(answers):
            for name, value in answers[index].items():
                sums[name] = sums.get(name, 0.0) + value
        return accuracy_and_loss(sums)

    def by_device(self, params: bytes, seed: int) -> tuple[list[float], str]:
        """Return the accuracy on single devices' own examples, and which those are.

        At most 200 devices, drawn from all: their examples that were held out, or where they have none, those that
        they train on.
        """
        drawn = generator(seed, "evaluated devices").permutation(self._num_devices)[:_MOST_DEVICES]
        devices = np.sort(drawn).tolist()
        answers = dict(self._pool.scattered([EvaluateDevice(params, d) for d in devices]))
        found, held_out = [], False
        for index in sorted(answers):
            own, sums = answers[index]
            held_out = held_out or own
            accuracy, _ = accuracy_and_loss(sums)
            if accuracy is not None:
                found.append(accuracy)
        return found, "held out" if held_out else "training"
