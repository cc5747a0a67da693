"""DP-FTRL: noise on the nodes of a binary tree over rounds, for populations that are not sampled at random.

P. Kairouz, H. B. McMahan, S. Song, O. Thakkar, A. Thakurta, Z. Xu, Practical and Private (Deep) Learning without
Sampling or Shuffling, 2103.00039 (version 3), Algorithm 1 and Appendix D. With plain server steps, FTRL is Federated
Averaging whose round t gets the noise ``N_t - N_{t-1}``, N_t being the noise of the tree's estimate of the sum of the
first t rounds.

Each node's noise is N(0, σ²). A device that takes part at the leaves X changes node v by at most (number of X below v)
clips, so the whole tree is one Gaussian mechanism with sensitivity² ζ = max over X of Σ_v |X below v|² (Theorem D.3).

Estimates are those of J. Honaker, Efficient Use of Differentially Private Binary Trees (2015): a node's own noisy sum
and that of its children estimate the same number, and are averaged with weights by their variances.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from covey.privacy.randomness import Randomness
from covey.privacy.sampler import IntegerNoise
from covey.types.errors import PrivacyError

__all__ = ["TreeNoise", "tree_sensitivity_squared"]

Floats = NDArray[np.float64]


class TreeNoise:
    """The noise of successive rounds. Holds one vector for each complete tree of the forest: log2(rounds) at most.

    It lives in memory only: whoever has it can take the noise away. After a restart a new tree begins, and is paid for.
    """

    def __init__(self, noise: IntegerNoise, dim: int) -> None:
        """Begin a tree before its first round; ``noise`` is that of one node, on each of ``dim`` coordinates."""
        self._noise, self._dim = noise, dim
        self._forest: list[tuple[int, Floats]] = []
        self._before: Floats = np.zeros(dim)
        self.num_rounds = 0

    def next_round(self, source: Randomness) -> Floats:
        """Return what the next round's sum gets: ``N_t - N_{t-1}``, float64, in integer units.

        The nodes that the round completes are drawn from ``source``.
        """
        level, node = 0, self._own(source)
        while self._forest and self._forest[-1][0] == level:
            _, left = self._forest.pop()
            level += 1
            own_weight = _own_weight(level)
            node = own_weight * self._own(source) + (1 - own_weight) * (left + node)
        self._forest.append((level, node))
        now: Floats = sum((n for _, n in self._forest), np.zeros(self._dim))
        step, self._before = now - self._before, now
        self.num_rounds += 1
        return step

    def _own(self, source: Randomness) -> Floats:
        return self._noise.draw(self._dim, source).astype(np.float64)


@lru_cache(maxsize=64)
def _relative_variance(level: int) -> float:
    """Return the variance of a node's estimate over σ²: the node's own noise and its children's, combined."""
    return 1.0 if level == 0 else 1 / (1 + 1 / (2 * _relative_variance(level - 1)))


def _own_weight(level: int) -> float:
    return _relative_variance(level)  # 1/σ² over the sum of both inverse variances


def tree_sensitivity_squared(num_rounds: int, max_participation: int, min_separation: int) -> int:
    """Return ζ, the squared sensitivity of a tree over ``num_rounds``, in squared clips.

    Args:
        num_rounds: leaves of the tree.
        max_participation: in how many rounds one device may take part.
        min_separation: at least so many rounds lie between two of them.

    Dynamic programming over complete subtrees, as in Appendix D.2; the state is how many rounds at a subtree's start
    the device must still wait (``start``) and how many of its last wait reach beyond the subtree's end (``end``).

    Raises:
        PrivacyError: arguments that are not counts.
    """
    if num_rounds < 1 or max_participation < 1 or min_separation < 0:
        raise PrivacyError(
            "tree",
            expected="rounds and participations of at least 1, a separation of at least 0",
            got=f"{num_rounds}, {max_participation}, {min_separation}",
        )
    wait = min(min_separation, num_rounds)
    trees = _complete_trees(num_rounds.bit_length() - 1, max_participation, wait)
    forest: NDArray[np.float64] | None = None
    for level in reversed(range(num_rounds.bit_length())):
        if num_rounds >> level & 1:
            tree = trees[level]
            forest = tree if forest is None else _joined(forest, tree, max_participation)
    assert forest is not None
    return int(forest[:, 0, wait].max())


def _complete_trees(height: int, most: int, wait: int) -> list[Floats]:
    """Return for each level the best sums, ``[participations, start, end]``; minus infinity where impossible."""
    start, end = np.meshgrid(np.arange(wait + 1), np.arange(wait + 1), indexing="ij")
    leaf = np.full((2, wait + 1, wait + 1), -np.inf)
    leaf[0][start <= 1 + end] = 0
    leaf[1][0, wait] = 1
    trees = [leaf]
    for level in range(1, height + 1):
        tree = _joined(trees[-1], trees[-1], most)
        tree += np.arange(len(tree))[:, None, None] ** 2.0
        # Without any participation the wait just passes: -inf + 0 stays -inf where it reaches beyond.
        tree[0] = np.where(start <= (1 << level) + end, 0, -np.inf)
        trees.append(tree)
    return trees


def _joined(left: Floats, right: Floats, most: int) -> Floats:
    """Return the best sums of two subtrees side by side: a (max, +) product over the wait that crosses the middle."""
    size = left.shape[1]
    count = min(most, len(left) + len(right) - 2) + 1
    out = np.full((count, size, size), -np.inf)
    for p, table in enumerate(left[:count]):
        part = right[: count - p]
        # A longer crossing wait allows more on the left and less on the right: only where the left side gains matters.
        for value in np.unique(table[np.isfinite(table)]):
            reached = table >= value
            crossing = reached.argmax(axis=1)
            found = np.where(reached.any(axis=1)[:, None], value + part[:, crossing, :], -np.inf)
            np.maximum(out[p : p + len(part)], found, out=out[p : p + len(part)])
    feasible = np.isfinite(out).any(axis=(1, 2))
    return out[: int(np.flatnonzero(feasible).max(initial=0)) + 1]
