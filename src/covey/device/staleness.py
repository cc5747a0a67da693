"""How much a late update counts in asynchronous aggregation: 2106.06639, section 5.

``s(τ) = 1 / √(1 + τ)`` for an update that began τ moves of the server's model ago. The device multiplies before it
encodes, so that the server adds what it gets and needs to look at no single update.
"""

import dataclasses

import numpy as np

from covey.device.trainer import LocalResult
from covey.types.segments import HEADER

__all__ = ["staleness_factor", "weighed"]


def staleness_factor(staleness: int) -> float:
    """Return s(τ); 1 for an update of the present model."""
    return 1.0 / float(np.sqrt(1.0 + staleness))


def weighed(result: LocalResult, staleness: int) -> LocalResult:
    """Return an update whose change counts by its staleness. Its header, and so its weight, stays as it is."""
    factor = np.float32(staleness_factor(staleness))
    scaled = {k: v if k == HEADER else v * factor for k, v in result.segments.items()}
    return dataclasses.replace(result, segments=scaled)
