"""What a federated data set is: client ids, and each client's own examples, made when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import ExampleError, NotFoundError
from covey.types.tensors import Tensors

__all__ = ["Examples", "FederatedDataset", "PartitionedDataset", "from_clients", "pooled", "sizes_of"]

Examples = Tensors
"""Named arrays with the same first dimension: one row is one example."""

Indices = NDArray[np.int64]


class FederatedDataset(Protocol):
    """Examples by client. Asking twice for a client gives equal arrays; nobody may change them."""

    name: str

    @property
    def client_ids(self) -> Sequence[str]:
        """All clients, in a fixed order."""
        ...

    def num_examples(self, client: str) -> int:
        """Return how many training examples a client has, without making them where that is possible."""
        ...

    def train(self, client: str) -> Examples:
        """Return a client's training examples. Raises NotFoundError for an unknown client."""
        ...

    def test(self, client: str) -> Examples:
        """Return a client's held-out examples; may be empty."""
        ...

    def pooled_test(self) -> Examples:
        """Return the held-out examples of all."""
        ...


class PartitionedDataset:
    """One pool of examples, cut into clients by row numbers, with one common test set."""

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Indices],
        rows: Callable[[Indices], Examples],
        test: Callable[[], Examples],
    ) -> None:
        """Put a data set together.

        Args:
            name: of the data set.
            parts: for each client its row numbers.
            rows: makes the examples of some rows.
            test: makes the common test set.
        """
        self.name = name
        self.client_ids: Sequence[str] = tuple(parts)
        self._parts = parts
        self._rows = rows
        self._test = test
        self._pooled: Examples | None = None

    def num_examples(self, client: str) -> int:
        """See :class:`FederatedDataset`."""
        return len(self._part(client))

    def train(self, client: str) -> Examples:
        """See :class:`FederatedDataset`."""
        return self._rows(self._part(client))

    def test(self, client: str) -> Examples:
        """Return nothing: the test set is common to all."""
        self._part(client)
        return {k: v[:0] for k, v in self.pooled_test().items()}

    def pooled_test(self) -> Examples:
        """See :class:`FederatedDataset`."""
        if self._pooled is None:
            self._pooled = self._test()
        return self._pooled

    def _part(self, client: str) -> Indices:
        if client not in self._parts:
            raise unknown_client(self.name, len(self._parts))
        return self._parts[client]


class _InMemory:
    def __init__(self, name: str, train: Mapping[str, Examples], test: Mapping[str, Examples]) -> None:
        self.name = name
        self.client_ids: Sequence[str] = tuple(train)
        self._train, self._test = train, test

    def num_examples(self, client: str) -> int:
        return _count(self.train(client))

    def train(self, client: str) -> Examples:
        if client not in self._train:
            raise unknown_client(self.name, len(self._train))
        return self._train[client]

    def test(self, client: str) -> Examples:
        return self._test.get(client) or {k: v[:0] for k, v in self.train(client).items()}

    def pooled_test(self) -> Examples:
        return pooled([self.test(c) for c in self.client_ids])


def from_clients(
    name: str, train: Mapping[str, Mapping[str, Any]], test: Mapping[str, Mapping[str, Any]] | None = None
) -> FederatedDataset:
    """Return a data set of your own arrays: ``{client: {field: array}}``.

    Raises:
        ExampleError: a client whose fields have different lengths, or other fields than the first client's.
    """
    made = {c: {k: np.asarray(v) for k, v in fields.items()} for c, fields in train.items()}
    held = {c: {k: np.asarray(v) for k, v in fields.items()} for c, fields in (test or {}).items()}
    first = next(iter(made.values()), {})
    for where, clients in (("train", made), ("test", held)):
        for fields in clients.values():
            if set(fields) != set(first):
                raise ExampleError(f"data set {name!r}: {where}", expected=f"fields {sorted(first)}", got="others")
            if len({len(v) for v in fields.values()}) > 1:
                raise ExampleError(
                    f"data set {name!r}: {where}", expected="fields of one length", got="different lengths"
                )
    return _InMemory(name, made, held)


def sizes_of(dataset: FederatedDataset) -> NDArray[np.int64]:
    """Return how many training examples each client has, in the order of ``client_ids``.

    A data set of very many clients has an attribute ``sizes`` of its own, so that nobody has to ask a million times.
    """
    own = getattr(dataset, "sizes", None)
    if own is not None:
        return np.asarray(own, np.int64)
    return np.fromiter((dataset.num_examples(c) for c in dataset.client_ids), np.int64, len(dataset.client_ids))


def pooled(parts: Sequence[Examples]) -> Examples:
    """Return the examples of all parts, one after the other."""
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}


def unknown_client(name: str, count: int) -> NotFoundError:
    """Return the error for a client that a data set does not have; never with the id in it."""
    return NotFoundError(f"data set {name!r}", expected=f"one of its {count} clients", got="another id")


def _count(examples: Examples) -> int:
    return len(next(iter(examples.values()))) if examples else 0
