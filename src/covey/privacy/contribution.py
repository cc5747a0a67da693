"""One device's contribution: clipped, rounded, noised where devices add the noise, and nothing beside it.

Order (2102.06387, Algorithm 1): clip to the round's length, scale so that the clip is ``clip_units``, round without
lengthening beyond the bound, add this device's share of the noise. Masks come after that, and only after that.

A rotation, and a part of its coordinates that is drawn in public, come before (the rotation as in that algorithm): what
is clipped is what is sent, so that neither changes the sensitivity. After a rotation coordinates are all about equally
large, and a clamp on each of them leaves more of a ring to the steps; it shortens a vector, or leaves it as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.privacy.adaptive import indicator_units
from covey.privacy.clip import clipped
from covey.privacy.mechanism import Mechanism
from covey.privacy.randomness import Randomness
from covey.privacy.rounding import round_conditionally

__all__ = ["Contribution", "contribute"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What leaves the device, in integer units.

    Attributes:
        vectors: by segment, int64.
        count: the noised indicator of the adapting clip, or None where the clip is fixed.
    """

    vectors: dict[str, NDArray[np.int64]]
    count: int | None


def contribute(
    mechanism: Mechanism,
    vectors: Mapping[str, NDArray[np.floating]],
    clip: float,
    source: Randomness,
    *,
    limit: int | None = None,
) -> Contribution:
    """Make one device's contribution. The vectors are clipped together.

    Args:
        mechanism: what the plan promises.
        vectors: the update by segment, as reals, not weighted.
        clip: this round's.
        source: of the rounding and the noise; private, but in a simulation.
        limit: the largest magnitude of a coordinate before noise, in units; None: what the clip allows.

    Raises:
        UpdateNotFiniteError: a NaN or an infinity.
        ClipMissingError: a clip that cannot be one.
    """
    short, within = clipped(list(vectors.values()), clip)
    units = round_conditionally(short, mechanism.clip_units / clip, mechanism.clip_units, source)
    out = {name: v.astype(np.int64) for name, v in zip(vectors, units, strict=True)}
    if limit is not None:  # after rounding: it then holds for integers, and shortens what was short enough
        for vector in out.values():
            np.clip(vector, -limit, limit, out=vector)
    count = indicator_units(within) if mechanism.adaptive else None
    if mechanism.distributed:
        noise = mechanism.noise()
        for vector in out.values():
            vector += noise.draw(len(vector), source)
        if count is not None:
            count += int(mechanism.count_noise_sampler().draw(1, source)[0])
    return Contribution(out, count)
