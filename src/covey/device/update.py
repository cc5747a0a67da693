"""From a trained result to the bytes of a report, by the codecs that the plan names; and the masks that come before.

What is public (rotation, positions, masks) follows from the assignment, so that the server can derive it too; what is
private (rounding) from the device's own seed.
"""

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import HEADER_CODEC, Codec, codec_for, segment_seed
from covey.device.randomness import PrivateStream
from covey.plans.manifest import TRAINED, Manifest
from covey.types.errors import PlanFormatError
from covey.types.tensors import Tensors, TensorSpec, unflatten_tensors
from covey.wire.framing import encode_update
from covey.wire.messages import Assignment

__all__ = ["encoded_update", "trained_masks"]


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
    terms = manifest.privacy
    own = {s.name: codec_for(s.codec, terms.mode, terms.n_max) for s in manifest.phases[assignment.phase].segments}
    parts = []
    for name in (s.name for s in manifest.layout(assignment.phase)):
        codec = own.get(name, HEADER_CODEC)
        rounding = PrivateStream(seed, f"rounding/{name}")
        parts.append((name, codec.encode(values.pop(name), _public(codec, assignment, name), rounding)))
    return encode_update(parts)


def trained_masks(manifest: Manifest, assignment: Assignment) -> Tensors:
    """Return which entries of each tensor a structured update trains, as ``trained/<name>``; nothing where all are.

    Raises:
        PlanFormatError: a plan that trains in place with a codec that names no mask.
    """
    phase = manifest.phases[assignment.phase]
    if not phase.trained_in_place:
        return {}
    (segment,) = phase.segments
    codec = codec_for(segment.codec, manifest.privacy.mode, manifest.privacy.n_max)
    at = codec.trained_positions(segment.length, _public(codec, assignment, segment.name))
    if at is None:
        raise PlanFormatError("phase: trained_in_place", expected="a codec mask:P|...", got=segment.codec)
    trained = np.zeros(segment.length, np.bool_)
    trained[at] = True
    return unflatten_tensors(
        trained, tuple(TensorSpec(f"{TRAINED}/{t.name}", t.shape, "bool") for t in segment.tensors)
    )


def _public(codec: Codec, assignment: Assignment, segment: str) -> bytes:
    return segment_seed(codec, round_seed=assignment.public_seed, session=assignment.session, segment=segment)
