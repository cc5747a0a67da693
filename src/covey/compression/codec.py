"""Which codec a segment of a plan has, and from which public seed it draws.

The codec itself, its laws and the layout of a payload are :mod:`covey.compression.pipeline`'s.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

from covey.compression.exact import Exact
from covey.compression.pipeline import PAYLOAD_VERSION, Codec
from covey.compression.ring_coder import CLIP_NORM, Residues
from covey.compression.spec import parse_spec
from covey.types.errors import CompressionSpecError
from covey.types.rng import derive_seed

__all__ = [
    "HEADER_CODEC",
    "PAYLOAD_VERSION",
    "Codec",
    "codec_for",
    "codec_named",
    "codecs_of",
    "norm_share",
    "part_codec",
    "segment_seed",
]


class _Terms(Protocol):
    @property
    def mode(self) -> str: ...
    @property
    def most_in_sum(self) -> int: ...
    @property
    def noise(self) -> Any: ...


class _Segment(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def codec(self) -> str: ...


@lru_cache(maxsize=256)
def codec_named(spec: str) -> Codec:
    """Return the codec that a plan names by its spec (:mod:`covey.compression.spec`).

    Raises:
        CompressionSpecError: no such spec.
        MissingExtraError: it needs a package that is not installed.
    """
    return Codec(*parse_spec(spec))


HEADER_CODEC = Codec((), Exact("float64"))
"""For the header, whose counter and metric sums float32 would round."""


def codec_for(spec: str, mode: str, n_max: int, *, noised: bool = False) -> Codec:
    """Return the codec of a segment in a plan of mode ``plain`` or ``secure``, with at most ``n_max`` devices in a sum.

    ``float32`` in a secure plan, or under noise, means that nothing is compressed: integers are summed as they are.

    Args:
        spec: the segment's.
        mode: the plan's.
        n_max: the plan's.
        noised: whether the plan has differential privacy.

    Raises:
        CompressionSpecError: no such spec; one that cannot be summed under masks, in secure mode, or would change what
            was noised; or one whose ring is for fewer devices.
        MissingExtraError: it needs a package that is not installed.
    """
    codec = codec_named(spec)
    where = f"compression {codec.text!r}"
    by_clip = codec.ring is not None and codec.ring.norm is None
    if noised and not by_clip and codec.text != "float32":
        raise CompressionSpecError(
            where,
            expected="a spec that leaves rounding to the noise",
            got="roundings, scales or steps of its own",
            hint=f"[mask:P|]hd[|subsample:P]|ring:B:N:{CLIP_NORM} composes with --privacy, and so does float32",
        )
    if by_clip and not noised:
        assert codec.ring is not None
        codec.ring.path(1)  # raises: there is no clip to take the norm from
    if mode == "secure" and not codec.composes_with_secagg and codec.text != "float32":
        raise CompressionSpecError(
            where,
            expected="a spec whose payloads can be summed, in a plan with secure aggregation",
            got="scales or codes of each device's own",
            hint="[mask:P|][lowrank:K|]hd[|subsample:P]|ring:B:N:NORM composes; the other specs are for plain mode",
        )
    if mode == "secure" and codec.ring is not None and codec.ring.n_max < n_max:
        raise CompressionSpecError(
            where,
            expected=f"a ring for the {n_max} devices that the plan may select",
            got=str(codec.ring.n_max),
            hint="a sum over more devices could wrap unseen; covey compression ring chooses one",
        )
    return codec


def codecs_of(segments: Iterable[_Segment], terms: _Terms) -> dict[str, Codec]:
    """Return the codec of each of a phase's segments, by name.

    Args:
        segments: of a plan's phase.
        terms: the plan's, of privacy.

    Raises:
        CompressionSpecError, MissingExtraError: see :func:`codec_for`.
    """
    noised = terms.noise is not None
    return {s.name: codec_for(s.codec, terms.mode, terms.most_in_sum, noised=noised) for s in segments}


def part_codec(codec: Codec, *, noised: bool) -> Codec:
    """Return what makes the bytes of a segment's part of a report, from the codec that the plan names for it.

    Under noise the integers of a ring are already made where bytes are: they are packed as they are.
    """
    if not noised or codec.ring is None:
        return codec
    return _residues(codec.ring.bits)


@lru_cache(maxsize=32)
def _residues(bits: int) -> Codec:
    return Codec((), Residues(bits))


def norm_share(segments: Iterable[tuple[Codec, int]]) -> float:
    """Return the part of a norm that is left, in the mean, after a round's shared subsampling: ``sqrt(sent / all)``.

    Args:
        segments: the codec and the length of each segment whose joint norm is meant.
    """
    sent = rotated = 0
    for codec, length in segments:
        if codec.ring is None:
            sent, rotated = sent + length, rotated + length
        else:
            projection = codec.projection(length)
            sent, rotated = sent + projection.num_values, rotated + projection.num_rotated
    return math.sqrt(sent / rotated)


def segment_seed(codec: Codec, *, round_seed: str, session: str, segment: str) -> bytes:
    """Return the public seed of one segment of one session, as both sides derive it from an Assignment.

    Where sums are taken of what is sent, it is the round's, the same for all devices; otherwise the session's own,
    which is what makes the devices' errors average out.

    Args:
        codec: the segment's.
        round_seed: the Assignment's ``public_seed``, as the text that it is.
        session: the Assignment's ``session``.
        segment: its name.
    """
    if codec.composes_with_secagg:
        return derive_seed(round_seed.encode(), "round", segment)
    return derive_seed(round_seed.encode(), "session", session, segment)
