"""Entropy coding of small integers by a range coder, with the exact histogram as its model.

The coder is the library `constriction` (an optional dependency, imported when it is first needed). The histogram
travels before the words; probabilities are ratios of integers in float64, the same on every machine. Where that is
longer than two bytes for each symbol, the symbols travel as they are.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey.types.errors import MissingExtraError, UpdateFormatError

__all__ = ["MAX_SYMBOL", "decode_symbols", "encode_symbols", "max_symbol_bytes", "range_coder"]

MAX_SYMBOL = 32_767
"""The largest magnitude of a symbol."""

_MAX_DISTINCT = 4096
_HEAD = struct.Struct("<H")
_TABLE = np.dtype([("symbol", "<i2"), ("count", "<u4")])

Symbols = NDArray[np.int16]


def range_coder() -> Any:
    """Return the library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import constriction
    except ModuleNotFoundError as e:
        raise MissingExtraError(
            "entropy coding",
            expected="the package constriction",
            got="none",
            hint="pip install 'covey[entropy]', or a spec without entropy coding (eden:B)",
        ) from e
    return constriction


def max_symbol_bytes(count: int) -> int:
    """Return the longest payload for ``count`` symbols."""
    return _HEAD.size + 2 * count


def encode_symbols(symbols: Symbols) -> bytes:
    """Encode symbols of at most :data:`MAX_SYMBOL` in magnitude: within 1 % of their empirical entropy, and a table."""
    plain = _HEAD.pack(0) + symbols.astype("<i2", copy=False).tobytes()
    low = int(symbols.min())
    counts = np.bincount(symbols.astype(np.int32) - low)
    seen = np.flatnonzero(counts)
    if len(seen) > _MAX_DISTINCT:
        return plain
    table = np.empty(len(seen), _TABLE)
    table["symbol"], table["count"] = seen + low, counts[seen]
    words = b""
    if len(seen) > 1:
        index = np.zeros(len(counts), np.int32)
        index[seen] = np.arange(len(seen), dtype=np.int32)
        encoder = range_coder().stream.queue.RangeEncoder()
        encoder.encode(index[symbols.astype(np.int32) - low], _model(table))
        words = encoder.get_compressed().astype("<u4", copy=False).tobytes()
    coded = _HEAD.pack(len(seen)) + table.tobytes() + words
    return coded if len(coded) < len(plain) else plain


def decode_symbols(payload: memoryview, count: int) -> Symbols:
    """Return ``count`` symbols.

    Raises:
        UpdateFormatError: the payload is not of :func:`encode_symbols` for so many symbols.
    """
    if len(payload) < _HEAD.size:
        raise UpdateFormatError("entropy code", expected=f"{_HEAD.size} bytes or more", got=str(len(payload)))
    (distinct,) = _HEAD.unpack(payload[: _HEAD.size])
    body = payload[_HEAD.size :]
    if distinct == 0:
        if len(body) != 2 * count:
            raise UpdateFormatError("entropy code", expected=f"{2 * count} bytes", got=str(len(body)))
        return np.frombuffer(body, "<i2").astype(np.int16)
    table = _checked_table(body, distinct, count)
    words = body[distinct * _TABLE.itemsize :]
    if distinct == 1:
        if len(words):
            raise UpdateFormatError("entropy code", expected="no words for one symbol", got=f"{len(words)} bytes")
        return np.full(count, table["symbol"][0], np.int16)
    if len(words) % 4 or len(words) > 2 * count:
        raise UpdateFormatError("entropy code", expected="whole words, fewer than the symbols", got=str(len(words)))
    decoder = range_coder().stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))
    try:
        index = decoder.decode(_model(table), count)
    except (AssertionError, ValueError) as e:
        raise UpdateFormatError("entropy code", expected="words of this table", got="others") from e
    if not np.array_equal(np.bincount(index, minlength=distinct), table["count"]):
        raise UpdateFormatError("entropy code", expected="as many of each symbol as its table says", got="others")
    out: Symbols = np.asarray(table["symbol"].astype(np.int16)[index])
    return out


def _checked_table(body: memoryview, distinct: int, count: int) -> "NDArray[Any]":
    if distinct > _MAX_DISTINCT or len(body) < distinct * _TABLE.itemsize:
        raise UpdateFormatError("entropy code", expected="a whole table", got=f"{len(body)} bytes")
    table = np.frombuffer(body, _TABLE, count=distinct)
    increasing = bool((np.diff(table["symbol"].astype(np.int32)) > 0).all())
    if not increasing or not table["count"].all() or int(table["count"].sum(dtype=np.uint64)) != count:
        raise UpdateFormatError("entropy code", expected="distinct symbols whose counts add up", got="others")
    return table


def _model(table: "NDArray[Any]") -> Any:
    counts = table["count"].astype(np.float64)
    return range_coder().stream.model.Categorical(counts / counts.sum(), perfect=False)
