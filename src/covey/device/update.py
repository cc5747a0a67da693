"""From a trained result to the bytes of a report, by the codecs that the plan names; and the masks that come before.

What is public (rotation, positions, masks) follows from the assignment, so that the server can derive it too; what is
private (rounding) from the device's own seed.
"""

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import HEADER_CODEC, Codec, codecs_of, part_codec, segment_seed
from covey.compression.structured_updates import LowRank, RandomMask
from covey.plans.manifest import BASIS, TRAINED, Manifest
from covey.privacy.randomness import AesCtr
from covey.types.errors import PlanFormatError
from covey.types.rng import derive_seed
from covey.types.segments import Segment, to_fixed_point
from covey.types.tensors import Tensors, TensorSpec, unflatten_tensors
from covey.wire.framing import encode_update
from covey.wire.messages import Assignment

__all__ = ["check_rings", "drawn_structure", "encoded_update", "projected", "summed_integers"]


def encoded_update(
    manifest: Manifest, assignment: Assignment, values: dict[str, NDArray[np.floating]], seed: bytes
) -> bytes:
    """Return the body of a report. ``values`` is emptied on the way, so that no update is held twice.

    Args:
        manifest: the plan's.
        assignment: what the session was told.
        values: the update as reals, by segment: all of the layout's.
        seed: the session's private 32 bytes.

    Raises:
        UpdateNotFiniteError: a NaN or an infinity.
    """
    own = _part_codecs(manifest, assignment.phase)
    parts = []
    for name in (s.name for s in manifest.layout(assignment.phase)):
        codec = own.get(name, HEADER_CODEC)
        public = _public(codec, assignment, name)
        parts.append((name, codec.encode(values.pop(name), public, _rounding(seed, name))))
    return encode_update(parts)


def projected(
    manifest: Manifest, assignment: Assignment, values: dict[str, NDArray[np.floating]]
) -> dict[str, NDArray[np.floating]]:
    """Return what is sent of an update before clip, rounding and noise: the linear part of its codecs with a ring.

    Args:
        manifest: the plan's, with noise.
        assignment: what the session was told.
        values: the update as reals, by segment; it is emptied on the way.

    Raises:
        UpdateNotFiniteError: a NaN or an infinity.
    """
    out = {}
    for name, codec in codecs_of(manifest.phases[assignment.phase].segments, manifest.privacy).items():
        reals = values.pop(name)
        out[name] = reals if codec.ring is None else codec.project(reals, _public(codec, assignment, name))
    return out


def summed_integers(
    manifest: Manifest, assignment: Assignment, values: dict[str, NDArray[np.floating]], seed: bytes
) -> list[NDArray[np.int64]]:
    """Return what is masked in secure mode: integers for each segment of the layout, in its order.

    By the ring of the segment's codec where it has one, else in the segment's fixed point. ``values`` is emptied on the
    way, so that no update is held twice.

    Args:
        manifest: the plan's.
        assignment: what the session was told.
        values: the update as reals, by segment.
        seed: the session's private 32 bytes, for rounding.

    Raises:
        UpdateNotFiniteError, UpdateRangeError: what may not be summed.
    """
    codecs = _part_codecs(manifest, assignment.phase)
    out = []
    for s in manifest.layout(assignment.phase):
        codec, reals = codecs.get(s.name, HEADER_CODEC), values.pop(s.name)
        if codec.ring is None:
            out.append(to_fixed_point(reals, s))
        else:
            out.append(codec.to_ring(reals, _public(codec, assignment, s.name), _rounding(seed, s.name)))
    return out


def check_rings(manifest: Manifest, phase: int) -> None:
    """Raise unless the integers that a plan in secure mode or with noise declares are those that its codecs make.

    Raises:
        PlanFormatError: a ring of another size than its codec's, or one where there should be none.
        CompressionSpecError, MissingExtraError: see :func:`covey.compression.codec.codec_for`.
    """
    if manifest.privacy.mode != "secure" and manifest.privacy.noise is None:
        return
    codecs = codecs_of(manifest.phases[phase].segments, manifest.privacy)
    for declared, s in zip(manifest.layout(phase)[1:], manifest.phases[phase].segments, strict=False):
        codec = codecs[s.name]
        if (codec.ring is None) != (s.ring is None) or (
            codec.ring is not None and _made(codec, s.name, s.length, manifest) != declared
        ):
            raise PlanFormatError(
                f"plan: segment {s.name!r}: ring", expected=f"what its codec {s.codec!r} makes", got="another",
                hint="build the plan anew",
            )  # fmt: skip


def _made(codec: Codec, name: str, length: int, manifest: Manifest) -> Segment:
    """Return the integers that a codec with a ring makes. Under noise it is the noise that bounds them."""
    noise, ring = manifest.privacy.noise, codec.ring
    if noise is None or ring is None:
        return codec.ring_segment(name, length)
    count, bound = codec.projection(length).num_values, noise.coordinate_bound + 1
    return Segment(name, count, bound, ring.n_max, ring_bits=ring.bits)


def drawn_structure(manifest: Manifest, assignment: Assignment) -> Tensors:
    """Return what a structured update draws for the graphs: its masks, or its basis; nothing where all is trained.

    Raises:
        PlanFormatError: a plan that trains in place with a codec that names no structure.
    """
    phase = manifest.phases[assignment.phase]
    if not phase.trained_in_place:
        return {}
    (segment,) = phase.segments
    codec = codecs_of(phase.segments, manifest.privacy)[segment.name]
    seed = _public(codec, assignment, segment.name)
    match codec.structure:
        case RandomMask() as mask:
            trained = np.zeros(segment.length, np.bool_)
            trained[mask.positions(segment.length, seed)] = True
            specs = tuple(TensorSpec(f"{TRAINED}/{t.name}", t.shape, "bool") for t in segment.tensors)
            return unflatten_tensors(trained, specs)
        case LowRank() as low_rank:
            return {BASIS: low_rank.basis(seed)}
        case None:
            raise PlanFormatError(
                "phase: trained_in_place", expected="a codec mask:P|... or lowrank:K|...", got=segment.codec
            )


def _part_codecs(manifest: Manifest, phase: int) -> dict[str, Codec]:
    noised, codecs = manifest.privacy.noise is not None, codecs_of(manifest.phases[phase].segments, manifest.privacy)
    return {name: part_codec(codec, noised=noised) for name, codec in codecs.items()}


def _public(codec: Codec, assignment: Assignment, segment: str) -> bytes:
    return segment_seed(codec, round_seed=assignment.public_seed, session=assignment.session, segment=segment)


def _rounding(seed: bytes, segment: str) -> AesCtr:
    # Whoever holds the session's seed could repeat it; noise is never drawn from it.
    return AesCtr(derive_seed(seed, "private", f"rounding/{segment}"), private=False)
