"""The graph: complete, or a random regular one that everybody draws alike."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.secagg.graph import Graph
from covey.secagg.server.share import inbound


@given(st.integers(3, 200), st.integers(1, 30), st.binary(min_size=32, max_size=32))
@settings(max_examples=60, deadline=None)
def test_regular_symmetric_and_without_loops(n, half, seed):
    graph = Graph(n, 2 * half, seed)
    rows = [graph.neighbours(p) for p in range(n)]
    degree = min(2 * half, n - 1)
    for p, row in enumerate(rows):
        assert list(row) == sorted(set(row)) and len(row) == degree and p not in row
        assert all(p in rows[q] for q in row)
    matrix = graph.matrix()
    assert matrix.tolist() == [list(r) for r in rows]
    arriving = inbound(matrix)
    for p in range(n):  # what arrives is what the neighbours addressed to p, by sender
        assert [(int(e) // degree, int(matrix.reshape(-1)[e])) for e in arriving[p]] == [(q, p) for q in rows[p]]


@pytest.mark.parametrize("n", [3, 50, 500])
def test_the_seed_alone_decides(n):
    rows = {tuple(Graph(n, 4, bytes([s]) * 32).matrix().reshape(-1).tolist()) for s in (1, 1, 2, 3)}
    assert len(rows) == (1 if n <= 5 else 3)


def test_every_pair_is_joined_about_equally_often():
    """10,000 graphs of 9 parties, degree 4: each of 36 pairs with probability 1/2, within 6 standard deviations."""
    counts: Counter[tuple[int, int]] = Counter()
    for i in range(10_000):
        matrix = Graph(9, 4, i.to_bytes(32, "little")).matrix()
        counts.update((p, q) for p in range(9) for q in matrix[p].tolist() if p < q)
    assert max(abs(c - 5000) for c in counts.values()) <= 6 * np.sqrt(10_000 / 4)
    assert len(counts) == 36
