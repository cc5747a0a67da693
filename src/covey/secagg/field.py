"""GF(2^16): the field of the shares.

An element is a uint16: the polynomial over GF(2) whose coefficients are its bits, modulo
``x^16 + x^12 + x^3 + x + 1`` (0x1100B), of which ``x`` is a generator. A 32-byte secret is 16 elements (little-endian
limbs), every byte string is a valid secret, and 65,535 holders can have a share each: GF(2^8) would stop at 255, and a
prime field would leave some 32-byte strings without an encoding.

Products are looked up in tables of logarithms, so their timing depends on the values through the cache. The party
shares its own fresh secrets, once, on its own device; run nothing hostile beside it.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LIMBS", "ORDER", "Elements", "exp", "from_bytes", "inverse", "log", "multiply", "to_bytes"]

LIMBS = 16
"""Elements in a 32-byte secret."""

ORDER = 65_535
"""Of the multiplicative group."""

_POLYNOMIAL = 0x1100B
_LOG_OF_ZERO = 2 * ORDER
"""Larger than any sum of two logarithms, so that a product with zero falls into the zeros behind the table."""

Elements = NDArray[np.uint16]
Logs = NDArray[np.int32]


@functools.cache
def _tables() -> tuple[Elements, Logs]:
    powers = np.zeros(2 * _LOG_OF_ZERO + 1, np.uint16)
    logs = np.full(ORDER + 1, _LOG_OF_ZERO, np.int32)
    value = 1
    for i in range(ORDER):
        powers[i] = powers[i + ORDER] = value
        logs[value] = i
        value <<= 1
        if value > ORDER:
            value ^= _POLYNOMIAL
    powers.setflags(write=False)
    logs.setflags(write=False)
    return powers, logs


def log(a: NDArray[Any]) -> Logs:
    """Return discrete logarithms to base ``x``; of zero a number that :func:`exp` turns back into zero."""
    return np.take(_tables()[1], a)


def exp(logs: NDArray[Any]) -> Elements:
    """Return powers of ``x``, for the sum of at most two logarithms."""
    return np.take(_tables()[0], logs)


def multiply(a: NDArray[Any], b: NDArray[Any]) -> Elements:
    """Return products, elementwise, with broadcasting; sums are ``a ^ b``."""
    return exp(log(a) + log(b))


def inverse(a: NDArray[Any]) -> Elements:
    """Return inverses.

    Raises:
        ZeroDivisionError: an element is zero.
    """
    if not np.all(a):
        raise ZeroDivisionError("zero has no inverse in GF(2^16)")
    return exp((ORDER - log(a)) % ORDER)


def from_bytes(raw: bytes) -> Elements:
    """Return an even number of bytes as elements, little-endian."""
    return np.frombuffer(raw, "<u2").astype(np.uint16)


def to_bytes(elements: Elements) -> bytes:
    """Return elements as bytes, little-endian."""
    return elements.astype("<u2").tobytes()
