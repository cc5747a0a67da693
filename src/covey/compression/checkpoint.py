"""The download side: a checkpoint quantized, or as a quantized difference from one that the device already has.

Uses the same specs as updates. A device that holds checkpoint n *as it decoded it* (its ``base``) gets n + 1 as a
difference from exactly that, so that errors do not add up from round to round: each decoding is one quantization away
from the true parameters. ``quantize:8`` is 4 times smaller than float32 with an error near 1e-5 of the squared norm;
a difference is as small as an update.

Layout, little-endian: 1 byte, 0 for a whole checkpoint or 1 for a difference; for a difference the first 8 bytes of the
SHA-256 of the base (float32, little-endian); then a payload of :mod:`covey.compression.codec`.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import codec_named
from covey.compression.stage import PrivateRandomness, Reals
from covey.types.errors import LayoutError, UpdateFormatError

__all__ = ["decode_checkpoint", "encode_checkpoint"]

_WHOLE, _DIFFERENCE = b"\0", b"\1"
_BASE_BYTES = 8


def encode_checkpoint(
    params: NDArray[np.float32],
    spec: str,
    seed: bytes,
    rounding: PrivateRandomness,
    *,
    base: NDArray[np.float32] | None = None,
) -> bytes:
    """Return the bytes that a device downloads.

    Args:
        params: the checkpoint, flat.
        spec: how it, or the difference, is encoded.
        seed: public; 32 bytes, for example the checkpoint's hash.
        rounding: the server's randomness.
        base: what the device holds, as it decoded it; None sends the whole checkpoint.

    Raises:
        CompressionSpecError: no such spec.
        LayoutError: a base of another length.
        UpdateNotFiniteError: a NaN or an infinity.
    """
    codec = codec_named(spec)
    if base is None:
        return _WHOLE + codec.encode(params, seed, rounding)
    if base.shape != params.shape:
        raise LayoutError("checkpoint", expected=f"a base of {params.size} values", got=str(base.size))
    return _DIFFERENCE + _name(base) + codec.encode(params - base, seed, rounding)


def decode_checkpoint(
    payload: bytes, length: int, spec: str, seed: bytes, *, base: NDArray[np.float32] | None = None
) -> Reals:
    """Return the parameters, ``[length]``.

    Raises:
        UpdateFormatError: damaged, of another spec, seed or length, or a difference from another base.
        UpdateNotFiniteError: values that no float32 holds.
    """
    codec = codec_named(spec)
    kind, body = payload[:1], payload[1:]
    if kind == _WHOLE:
        return np.asarray(codec.decode(body, length, seed), np.float32)
    if kind != _DIFFERENCE:
        raise UpdateFormatError("checkpoint", expected="a whole one or a difference", got="another kind")
    if base is None or base.shape != (length,) or body[:_BASE_BYTES] != _name(base):
        raise UpdateFormatError(
            "checkpoint", expected="the base that it differs from", got="another", hint="fetch the whole checkpoint"
        )
    return np.asarray(base + codec.decode(body[_BASE_BYTES:], length, seed), np.float32)


def _name(base: NDArray[np.float32]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(base, "<f4").data).digest()[:_BASE_BYTES]
