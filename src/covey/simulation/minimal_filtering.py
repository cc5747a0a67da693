"""Minimal filtering: how few products a short convolution needs, and the matrices that say which.

F(m, r) gives m neighbouring outputs of a filter with r taps from m + r - 1 products instead of m r. Winograd's
construction, used for images by Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308),
section 4; the matrices are Toom's and Cook's, computed here with fractions.
"""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

__all__ = ["MAX_TAPS", "Matrix", "MinimalFilter", "minimal_filter", "num_outputs", "transposed"]

MAX_TAPS = 5
"""The longest filter. Longer ones need further points, and their powers cost more digits than float32 can spare."""

Matrix = tuple[tuple[float, ...], ...]

_POINTS = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))


class MinimalFilter(NamedTuple):
    """``y = outputs^T ((taps g) * (inputs d))`` for y[i] = sum over j of d[i + j] g[j].

    Attributes:
        outputs: A, [m + r - 1, m].
        taps: G, [m + r - 1, r].
        inputs: B^T, [m + r - 1, m + r - 1].
    """

    outputs: Matrix
    taps: Matrix
    inputs: Matrix


@functools.cache
def minimal_filter(outputs: int, taps: int) -> MinimalFilter:
    """Return the matrices of F(outputs, taps).

    A product of two polynomials with ``outputs`` and ``taps`` coefficients is known from its values at one point less
    than it has coefficients, and its first coefficient (the point at infinity). The filter is the transpose of that.
    """
    count = outputs + taps - 1
    points = [Fraction(p) for p in _POINTS[: count - 1]]
    assert len(points) == count - 1, f"F({outputs}, {taps}) needs {count - 1} points"
    interpolation = list(zip(*_inverse(_values(points, count)), strict=True))
    inputs, factors = [], _values(points, taps)
    for i, row in enumerate(interpolation):
        # Whole numbers where most of the work is; the kernel, which is small, takes the fractions.
        scale = Fraction(math.lcm(*(v.denominator for v in row)))
        scale /= math.gcd(*(int(v * scale) for v in row))
        inputs.append([v * scale for v in row])
        factors[i] = [v / scale for v in factors[i]]
    return MinimalFilter(_floats(_values(points, outputs)), _floats(factors), _floats(inputs))


def num_outputs(size: int, taps: int) -> int:
    """Return the m of F(m, taps) that covers ``size`` outputs with the fewest products."""
    return min((2, 4), key=lambda m: (m + taps - 1) * -(-size // m))


def transposed(matrix: Matrix) -> Matrix:
    """Return the transpose."""
    return tuple(zip(*matrix, strict=True))


def _values(points: list[Fraction], count: int) -> list[list[Fraction]]:
    """Return the matrix from ``count`` coefficients to a polynomial's values at the points and at infinity."""
    return [[p**k for k in range(count)] for p in points] + [[Fraction(int(k == count - 1)) for k in range(count)]]


def _inverse(matrix: list[list[Fraction]]) -> list[list[Fraction]]:
    size = len(matrix)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = next(j for j in range(i, size) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(size):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[size:] for row in rows]


def _floats(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(v) for v in row) for row in rows)
