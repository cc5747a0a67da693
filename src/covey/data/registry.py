"""Data sets by name."""

import difflib
from collections.abc import Mapping
from typing import Any

from covey.data.dataset import FederatedDataset
from covey.data.images import cifar10, mnist
from covey.data.partition import parse_partition
from covey.data.shakespeare import Shakespeare
from covey.types.errors import UsageError

__all__ = ["DATASETS", "load"]

DATASETS: Mapping[str, str] = {
    "shakespeare": "the plays by speaking role: 1,256 devices, characters (embedded)",
    "mnist": "handwritten digits: 60,000 images; iid, two-class, dirichlet:ALPHA, resample:N, writer",
    "cifar10": "photographs in ten classes: 50,000 images; iid, two-class, dirichlet:ALPHA, resample:N",
}


def load(
    dataset: str, *, partition: str | None = None, num_clients: int | None = None, seed: int = 0, **options: Any
) -> FederatedDataset:
    """Return a federated data set.

    Args:
        dataset: one of :data:`DATASETS`.
        partition: see :func:`covey.data.partition.parse_partition`; ``role`` is Shakespeare's only one.
        num_clients: how many clients (100 unless told; by writer and by role there are as many as there are).
        seed: of the partition.
        options: of the data set; see :class:`Shakespeare` and :func:`covey.data.images.cifar10`.

    Raises:
        UsageError: an unknown data set (with near misses) or partition.
        DatasetMissingError: its files are not on this machine; says what to do.
    """
    if dataset == "shakespeare":
        if partition not in (None, "role"):
            raise UsageError("--partition", expected="role for shakespeare", got=str(partition))
        return Shakespeare(num_clients=num_clients, **options)
    if dataset not in DATASETS:
        near = difflib.get_close_matches(dataset, DATASETS, n=2)
        raise UsageError(
            "data set",
            expected=f"one of {', '.join(DATASETS)}",
            got=dataset,
            hint=f"did you mean {' or '.join(near)}?" if near else "",
        )
    parsed = parse_partition(partition or "iid")
    make = mnist if dataset == "mnist" else cifar10
    return make(parsed, 100 if num_clients is None else num_clients, seed, **options)
