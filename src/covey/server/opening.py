"""From an opened sum of integers to the sum of reals that an algorithm applies."""

import numpy as np
from numpy.typing import NDArray

from covey.compression.codec import codec_for, segment_seed
from covey.plans.manifest import Manifest
from covey.types.segments import SegmentSum

__all__ = ["opened_reals"]


def opened_reals(manifest: Manifest, phase: int, total: SegmentSum, round_seed: str) -> dict[str, NDArray[np.float64]]:
    """Return the sum of each of the phase's segments as reals, float64.

    What a codec with a ring made in secure mode is undone here, once, for the whole sum: rotation and subsampling are
    linear and the same for all devices of a round.

    Args:
        manifest: of the plan.
        phase: of the round.
        total: the opened sum.
        round_seed: the ``public_seed`` of the attempt's assignments.
    """
    terms, out = manifest.privacy, {}
    for s in manifest.phases[phase].segments:
        codec = codec_for(s.codec, terms.mode, terms.most_in_sum)
        if s.ring is None or codec.ring is None:
            out[s.name] = total.reals(s.name)
        else:
            # One seed for all devices; a session plays no part in it.
            seed = segment_seed(codec, round_seed=round_seed, session="", segment=s.name)
            out[s.name] = codec.from_ring(total.integers(s.name), s.length, seed).astype(np.float64)
    return out
