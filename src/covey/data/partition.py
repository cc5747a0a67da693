"""How one pool of labelled examples is dealt out to clients.

Laws: parts are disjoint and cover the pool (by-writer keeps all rows too), except for ``resample``, where each client
draws rows of its own; the same generator gives the same parts.
"""

import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import UsageError

__all__ = ["Partition", "by_writer", "dirichlet", "iid", "parse_partition", "two_class"]

Indices = NDArray[np.int64]

_KINDS = ("iid", "two-class", "dirichlet", "resample", "writer", "role")
_TEXT = "iid, two-class, dirichlet:ALPHA, resample:N, writer or role"


@dataclass(frozen=True, slots=True)
class Partition:
    """A parsed ``--partition``: its kind, alpha for ``dirichlet``, and the examples of a client for ``resample``."""

    kind: str
    alpha: float = 0.0
    num_examples: int = 0


def parse_partition(text: str) -> Partition:
    """Parse ``iid``, ``two-class``, ``dirichlet:ALPHA``, ``resample:N``, ``writer`` or ``role``.

    Raises:
        UsageError: none of them (names the nearest), or a number that makes no sense.
    """
    kind, _, rest = text.partition(":")
    if kind not in _KINDS or (rest and kind not in ("dirichlet", "resample")):
        near = difflib.get_close_matches(kind, _KINDS, n=2)
        raise UsageError(
            "--partition",
            expected=_TEXT,
            got=text,
            hint=f"did you mean {' or '.join(near)}?" if near else "",
        )
    if kind == "resample":
        if not (rest.isdigit() and int(rest) > 0):
            raise UsageError("--partition", expected="resample:N with N examples for each device", got=text)
        return Partition(kind, num_examples=int(rest))
    if kind != "dirichlet":
        return Partition(kind)
    try:
        alpha = float(rest)
    except ValueError:
        alpha = 0.0
    if not 0 < alpha < float("inf"):
        raise UsageError("--partition", expected="dirichlet:ALPHA with ALPHA above 0, such as dirichlet:0.3", got=text)
    return Partition(kind, alpha)


def iid(num_rows: int, num_clients: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffle and cut into parts whose sizes differ by at most one (1602.05629, section 3)."""
    _check(num_rows, num_clients)
    return [np.sort(p) for p in np.array_split(rng.permutation(num_rows), num_clients)]


def two_class(labels: NDArray[np.integer], num_clients: int, rng: np.random.Generator) -> list[Indices]:
    """Sort by label, cut into ``2 * num_clients`` shards, and give two to each client.

    The "pathological non-IID" partition of 1602.05629, section 3: 200 shards of 300 for 100 clients, so that most see
    two digits only.
    """
    _check(len(labels), 2 * num_clients)
    shards = np.array_split(np.argsort(labels, kind="stable"), 2 * num_clients)
    order = rng.permutation(2 * num_clients)
    return [np.sort(np.concatenate([shards[order[2 * i]], shards[order[2 * i + 1]]])) for i in range(num_clients)]


def dirichlet(labels: NDArray[np.integer], num_clients: int, alpha: float, rng: np.random.Generator) -> list[Indices]:
    """Give each client a label distribution drawn from Dirichlet(alpha), all clients equally large (to one row).

    T.-M. H. Hsu, H. Qi, M. Brown, Measuring the Effects of Non-Identical Data Distribution, 1909.06335, section 3. As
    there, a client draws rows by its distribution without replacement; when a class runs out, the rest are
    renormalised.
    """
    _check(len(labels), num_clients)
    classes = np.unique(labels)
    pools = [list(rng.permutation(np.flatnonzero(labels == c))) for c in classes]
    prior = np.array([len(p) for p in pools], np.float64) / len(labels)
    sizes = [len(p) for p in np.array_split(np.empty(len(labels)), num_clients)]
    parts = []
    for size in sizes:
        weights = rng.dirichlet(alpha * prior * len(classes))
        rows: list[int] = []
        while len(rows) < size:
            left = np.array([len(p) for p in pools])
            usable = np.where(left > 0, np.maximum(weights, 1e-12), 0.0)
            wanted = np.minimum(rng.multinomial(size - len(rows), usable / usable.sum()), left)
            for pool, count in zip(pools, wanted, strict=True):
                rows += [pool.pop() for _ in range(count)]
        parts.append(np.sort(np.array(rows, np.int64)))
    return parts


def by_writer(writers: NDArray[np.integer]) -> dict[int, Indices]:
    """Return each writer's rows, by ascending writer id."""
    order = np.argsort(writers, kind="stable")
    ids, starts = np.unique(writers[order], return_index=True)
    return {int(i): rows for i, rows in zip(ids, np.split(order, starts[1:]), strict=True)}


def _check(num_rows: int, num_parts: int) -> None:
    if not 1 <= num_parts <= num_rows:
        raise UsageError("number of devices", expected=f"1 to {num_rows} parts of the data", got=str(num_parts))
