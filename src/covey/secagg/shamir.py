"""Shamir's secret sharing (1979) of byte strings over GF(2^16).

The secret is the constant term of a random polynomial of degree ``t - 1``, one polynomial for each two bytes; the
holder at ``x`` gets its values there. Any ``t`` shares determine the secret; ``t - 1`` are independent of it. Shares
carry no check of their own: whoever combines must check the result against a public key or a commitment, because a
holder may lie.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from covey.secagg import field
from covey.secagg.field import ORDER, Elements
from covey.types.errors import SecAggParameterError, ShareError

__all__ = ["combine", "combine_many", "split"]

_BLOCK = 1 << 18
"""Products in flight: 512 KiB of them stay in the cache."""


def split(secret: bytes, threshold: int, holders: Sequence[int], randomness: Callable[[int], bytes]) -> list[bytes]:
    """Split a secret so that any ``threshold`` of the holders can combine it.

    Args:
        secret: an even number of bytes.
        threshold: ``t``, from 1 to the number of holders.
        holders: their coordinates: distinct, 1 to 65,535. Zero is where the secret is.
        randomness: returns that many unpredictable bytes.

    Returns:
        One share for each holder, as long as the secret.

    Raises:
        SecAggParameterError: a threshold or coordinates outside these ranges.
    """
    if not 1 <= threshold <= len(holders):
        raise SecAggParameterError("shares", expected=f"1 <= t <= {len(holders)} holders", got=f"t = {threshold}")
    if len(set(holders)) != len(holders) or not all(1 <= x <= ORDER for x in holders):
        raise SecAggParameterError("shares", expected=f"distinct holders from 1 to {ORDER}", got="others")
    limbs = field.from_bytes(secret)
    coefficients = field.log(field.from_bytes(randomness((threshold - 1) * len(secret)))).reshape(-1, len(limbs))
    log_x = field.log(np.asarray(holders, np.uint16)).astype(np.int64)
    shares = np.broadcast_to(limbs, (len(holders), len(limbs))).copy()
    rows = max(1, _BLOCK // shares.size)
    for first in range(0, threshold - 1, rows):
        block = coefficients[first : first + rows]
        degrees = np.arange(first + 1, first + 1 + len(block))
        powers = (degrees[:, None] * log_x[None, :] % ORDER).astype(np.int32)
        terms = field.exp(powers[:, :, None] + block[:, None, :])
        shares ^= np.bitwise_xor.reduce(terms, axis=0)
    return [field.to_bytes(row) for row in shares]


def combine(shares: dict[int, bytes]) -> bytes:
    """Return the secret from exactly ``t`` shares by coordinate. Wrong shares give a wrong secret: check it.

    Raises:
        ShareError: no shares, unequal lengths, or a coordinate outside 1 to 65,535.
    """
    if len({len(s) for s in shares.values()}) != 1 or not all(1 <= x <= ORDER for x in shares):
        raise ShareError("shares", expected="shares of one length from holders 1 to 65,535", got="others")
    values = np.stack([field.from_bytes(s) for s in shares.values()])
    return field.to_bytes(combine_many(np.array([list(shares)], np.uint16), values[None])[0])


def combine_many(holders: Elements, shares: Elements) -> Elements:
    """Combine many secrets, each from its own ``t`` holders.

    Args:
        holders: uint16[secrets, t]: distinct coordinates in each row.
        shares: uint16[secrets, t, limbs], in the order of the holders.

    Returns:
        uint16[secrets, limbs].
    """
    num_secrets, t, num_limbs = shares.shape
    out = np.empty((num_secrets, num_limbs), np.uint16)
    same = bool(np.all(holders == holders[:1]))  # so in a complete graph: the weights are computed once
    once = _lagrange_logs(holders[:1]) if same else None
    rows = max(1, _BLOCK // (t * (num_limbs if same else max(t, num_limbs))))
    for i in range(0, num_secrets, rows):
        weights = _lagrange_logs(holders[i : i + rows]) if once is None else once
        terms = field.exp(field.log(shares[i : i + rows]) + weights[:, :, None])
        out[i : i + rows] = np.bitwise_xor.reduce(terms, axis=1)
    return out


def _lagrange_logs(holders: Elements) -> NDArray[np.int32]:
    """Return the logarithms of ``prod_{j != i} x_j / (x_j - x_i)``, Lagrange's weights at zero, row by row."""
    log_x = field.log(holders).astype(np.int64)
    differences = field.log(holders[:, :, None] ^ holders[:, None, :])
    diagonal = np.arange(holders.shape[1])
    differences[:, diagonal, diagonal] = 0
    divided = log_x + differences.sum(axis=2, dtype=np.int64)
    logs: NDArray[np.int32] = ((log_x.sum(axis=1, keepdims=True) - divided) % ORDER).astype(np.int32)
    return logs
