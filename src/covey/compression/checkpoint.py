"""The download side: a checkpoint quantized, or as a quantized difference from one that the device already has.

Uses the same specs as updates. A device that holds checkpoint n *as it decoded it* (its ``base``) gets n + 1 as a
difference from exactly that, so that errors do not add up from round to round: each decoding is one quantization away
from the true parameters. ``quantize:8`` is 4 times smaller than float32 with an error near 1e-5 of the squared norm;
a difference is as small as an update.

Layout, little-endian: 1 byte, 0 for a whole checkpoint or 1 for a difference; for a difference the first 8 bytes of the
SHA-256 of the base (float32, little-endian); then a payload of :mod:`covey.compression.codec`.

On the wire (:func:`encode_download`) every tensor is a whole checkpoint of its own, so that each has its own range. The
only spec there is ``quantize:B``: its size follows from the plan to the byte, so that a device knows it before it
downloads, and its decoding is one product and one sum for each value, so that device and server get the same bits on
any two machines. A rotation undone by matrix products does not: their sums are taken in the library's order.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import Codec, codec_named
from covey.compression.stage import PrivateRandomness, Reals
from covey.types.errors import (
    CheckpointFormatError,
    CompressionSpecError,
    LayoutError,
    UpdateError,
    UpdateFormatError,
    VersionError,
)
from covey.types.rng import derive_seed
from covey.types.tensors import Tensors, TensorSpec, pack_tensors, packed_num_bytes, unpack_tensors

__all__ = [
    "decode_checkpoint",
    "decode_download",
    "download_num_bytes",
    "download_spec",
    "encode_checkpoint",
    "encode_download",
]

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
    payload: bytes | memoryview, length: int, spec: str, seed: bytes, *, base: NDArray[np.float32] | None = None
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


def download_spec(spec: str) -> str:
    """Return the spec of a download in canonical form; empty where checkpoints travel as float32.

    Raises:
        CompressionSpecError: no such spec, or one that cannot be a download's.
    """
    codec = _download_codec(spec)
    return "" if codec is None else codec.text


def download_num_bytes(spec: str, specs: Sequence[TensorSpec]) -> int:
    """Return exactly how many bytes a device downloads for the parameters ``specs``.

    Raises:
        CompressionSpecError: no such spec, one that cannot be a download's, or parameters that are not float32.
    """
    codec = _download_codec(spec)
    if codec is None:
        return packed_num_bytes(specs)
    if odd := [s.name for s in specs if s.dtype != "float32"]:
        raise CompressionSpecError(f"download {spec!r}", expected="float32 parameters", got=f"others: {odd[0][:40]}")
    return sum(_num_bytes(codec, s) for s in specs)


def encode_download(params: Tensors, specs: Sequence[TensorSpec], spec: str, rounding: PrivateRandomness) -> bytes:
    """Return what a device downloads, of :func:`download_num_bytes`.

    Args:
        params: the checkpoint.
        specs: what it must be.
        spec: how it is encoded.
        rounding: draws for rounding. They protect nothing: no device's data are in them.

    Raises:
        CompressionSpecError: see :func:`download_num_bytes`.
        LayoutError: parameters other than ``specs``.
        UpdateNotFiniteError: a NaN or an infinity.
    """
    packed = pack_tensors(params, specs)
    if _download_codec(spec) is None:
        return packed
    tensors = unpack_tensors(specs, packed).items()
    flat = [(name, np.asarray(t, np.float32).reshape(-1)) for name, t in tensors if t.size]
    return b"".join(encode_checkpoint(values, spec, _seed(name), rounding) for name, values in flat)


def decode_download(data: bytes, specs: Sequence[TensorSpec], spec: str) -> Tensors:
    """Return the parameters, read-only. Device and server get the same bits of the same bytes.

    Raises:
        CompressionSpecError: see :func:`download_num_bytes`.
        LayoutError: float32 of another length.
        CheckpointFormatError: cut short, extended, damaged, or of another spec or model.
    """
    codec = _download_codec(spec)
    if codec is None:
        return unpack_tensors(specs, data)
    if len(data) != (needed := download_num_bytes(spec, specs)):
        raise CheckpointFormatError(f"checkpoint by {spec}", expected=f"{needed} bytes", got=str(len(data)))
    view, out, offset = memoryview(data), {}, 0
    for s in sorted(specs):
        end = offset + _num_bytes(codec, s)
        out[s.name] = _decoded(view[offset:end], s, spec) if s.size else np.zeros(s.shape, np.float32)
        out[s.name].flags.writeable = False
        offset = end
    return out


def _decoded(payload: memoryview, tensor: TensorSpec, spec: str) -> Reals:
    try:
        return decode_checkpoint(payload, tensor.size, spec, _seed(tensor.name)).reshape(tensor.shape)
    except (UpdateError, VersionError) as e:
        where = f"checkpoint by {spec}: tensor {tensor.name!r}"
        raise CheckpointFormatError(where, expected=e.expected, got=e.got, hint=e.hint) from e


def _download_codec(spec: str) -> Codec | None:
    """Return the codec of a download; None where there is none."""
    if spec in ("", "float32"):
        return None
    codec = codec_named(spec)
    if not codec.text.startswith("quantize:"):
        raise CompressionSpecError(
            f"download {spec[:80]!r}",
            expected="quantize:B, B from 1 to 8",
            got="another spec",
            hint="a device must know the size before it downloads, and get the server's bits on any machine",
        )
    return codec


def _num_bytes(codec: Codec, tensor: TensorSpec) -> int:
    return len(_WHOLE) + codec.max_bytes(tensor.size) if tensor.size else 0


def _seed(tensor: str) -> bytes:
    """Return the public seed of a tensor's payload: it names the tensor, and nothing is drawn from it."""
    return derive_seed(b"", "checkpoint", tensor)
