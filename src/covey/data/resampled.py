"""A population of any size over one pool of examples: each client's rows are drawn when somebody asks for them.

For scale, not for statistics: clients share rows. Nothing is stored for a client, so that a million of them cost no
more than ten.
"""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from covey.data.dataset import Examples, unknown_client
from covey.types.rng import generator

__all__ = ["NumberedClients", "ResampledDataset"]

_PREFIX = "resample-"


class NumberedClients(Sequence[str]):
    """The names ``resample-0`` to ``resample-<n-1>``, made when they are looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """Return one name, or those of a slice."""
        found = range(self._count)[index]
        return f"{_PREFIX}{found}" if isinstance(found, int) else [f"{_PREFIX}{i}" for i in found]

    def index_of(self, client: str) -> int | None:
        """Return a name's number; None for another name."""
        digits = client.removeprefix(_PREFIX)
        known = client.startswith(_PREFIX) and digits.isdigit() and str(int(digits)) == digits
        return int(digits) if known and int(digits) < self._count else None


class ResampledDataset:
    """See :class:`covey.data.dataset.FederatedDataset`; rows are drawn with replacement from the pool."""

    def __init__(
        self,
        name: str,
        num_clients: int,
        num_examples: int,
        num_rows: int,
        rows: Callable[[NDArray[np.int64]], Examples],
        test: Callable[[], Examples],
        seed: int,
    ) -> None:
        """Put a population together.

        Args:
            name: of the data set.
            num_clients: how many there are.
            num_examples: of each client.
            num_rows: of the pool.
            rows: makes the examples of some rows.
            test: makes the common test set.
            seed: of every client's draw.
        """
        self.name = name
        self.client_ids = NumberedClients(num_clients)
        self._num_examples, self._num_rows, self._seed = num_examples, num_rows, seed
        self._rows, self._test = rows, test
        self._pooled: Examples | None = None

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many examples each client has."""
        return np.full(len(self.client_ids), self._num_examples, np.int64)

    def num_examples(self, client: str) -> int:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        self._number(client)
        return self._num_examples

    def train(self, client: str) -> Examples:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        rng = generator(self._seed, "resample", self._number(client))
        return self._rows(rng.integers(0, self._num_rows, self._num_examples))

    def test(self, client: str) -> Examples:
        """Return nothing: the test set is common to all."""
        self._number(client)
        return {k: v[:0] for k, v in self.pooled_test().items()}

    def pooled_test(self) -> Examples:
        """See :class:`covey.data.dataset.FederatedDataset`."""
        if self._pooled is None:
            self._pooled = self._test()
        return self._pooled

    def _number(self, client: str) -> int:
        number = self.client_ids.index_of(client)
        if number is None:
            raise unknown_client(self.name, len(self.client_ids))
        return number
