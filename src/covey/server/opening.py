"""From an opened sum of integers to the sum of reals that an algorithm applies.

What a codec with a ring made is undone here, once, for the whole sum: rotation and subsampling are linear and the same
for all devices of a round.
"""

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import Codec, codecs_of, norm_share, segment_seed
from covey.plans.manifest import Manifest
from covey.types.segments import SegmentSum

__all__ = ["opened_reals", "opened_units"]


def opened_reals(manifest: Manifest, phase: int, total: SegmentSum, round_seed: str) -> dict[str, NDArray[np.float64]]:
    """Return the sum of each of the phase's segments as reals, float64.

    Args:
        manifest: of the plan, without noise.
        phase: of the round.
        total: the opened sum.
        round_seed: the ``public_seed`` of the attempt's assignments.
    """
    segments, out = manifest.phases[phase].segments, {}
    codecs = codecs_of(segments, manifest.privacy)
    for s in segments:
        codec = codecs[s.name]
        if s.ring is None or codec.ring is None:
            out[s.name] = total.reals(s.name)
        else:
            seed = _shared_seed(codec, round_seed, s.name)
            out[s.name] = codec.from_ring(total.integers(s.name), s.length, seed).astype(np.float64)
    return out


def opened_units(
    manifest: Manifest, phase: int, units: dict[str, NDArray[np.float64]], clip: float, round_seed: str
) -> dict[str, NDArray[np.float64]]:
    """Return the noised sum of each of the phase's segments as reals, from integer units, float64.

    Args:
        manifest: of the plan, with noise.
        phase: of the round.
        units: by segment; ``clip_units`` of them are the clip, or that part of it to which what is sent was clipped.
        clip: the round's.
        round_seed: the ``public_seed`` of the attempt's assignments.
    """
    segments, noise, out = manifest.phases[phase].segments, manifest.privacy.noise, {}
    assert noise is not None
    codecs = codecs_of(segments, manifest.privacy)
    unit = clip * norm_share((codecs[s.name], s.length) for s in segments) / noise.clip_units
    for s in segments:
        codec, reals = codecs[s.name], units[s.name] * unit
        if codec.ring is not None:
            seed = _shared_seed(codec, round_seed, s.name)
            reals = codec.lift(reals.astype(np.float32), s.length, seed).astype(np.float64)
        out[s.name] = reals
    return out


def _shared_seed(codec: Codec, round_seed: str, segment: str) -> bytes:
    # One seed for all devices; a session plays no part in it.
    return segment_seed(codec, round_seed=round_seed, session="", segment=segment)
