"""A data set of which the devices train on one part only, so that the global model has not seen the others.

The parts are those of :mod:`covey.device.comparison`: what a device's gate and report parts hold stays unseen by the
federation as well, and the comparison of a global with a personal model is fair.
"""

from collections.abc import Sequence

from covey.data.dataset import Examples, FederatedDataset, pooled
from covey.device.comparison import split

__all__ = ["TrainPart"]


class TrainPart:
    """See :class:`covey.data.dataset.FederatedDataset`; ``whole`` has everything."""

    def __init__(self, whole: FederatedDataset, at_least: int) -> None:
        self.whole = whole
        self.name = f"{whole.name}, train part"
        self.client_ids: Sequence[str] = tuple(c for c in whole.client_ids if whole.num_examples(c) >= at_least)
        self._parts: dict[str, Examples] = {}

    def num_examples(self, client: str) -> int:
        """Return how many are in the train part."""
        return len(next(iter(self.train(client).values())))

    def train(self, client: str) -> Examples:
        """Return the train part."""
        if client not in self._parts:
            self._parts[client] = split(self.whole.train(client))["train"].examples
        return self._parts[client]

    def test(self, client: str) -> Examples:
        """Return the client's held-out examples."""
        return self.whole.test(client)

    def pooled_test(self) -> Examples:
        """Return the held-out examples of all."""
        tests = [self.test(c) for c in self.client_ids]
        return pooled(tests) if any(len(next(iter(t.values()))) for t in tests) else self.whole.pooled_test()
