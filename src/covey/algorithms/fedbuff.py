"""FedBuff, the server half: asynchronous aggregation through a buffer.

J. Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2106.06639, Algorithm 1. Devices come and
go without rounds: each trains from the model of the moment in which it was admitted. The server adds what arrives to a
buffer, and once K updates are in it, moves the model and empties the buffer::

    w ← w + η Σ s(τ_i) n_i Δ_i / Σ n_i,   s(τ) = 1 / √(1 + τ)

where the staleness τ_i is the version that the buffer makes less the one that would have been made by a buffer of the
model that the device began with (section 5 for s). Whoever folds an update weighs it first; this module is the one
definition of how, for the server and for the simulation.

Secure aggregation is refused: its masks cancel only within a cohort that was fixed before anyone trained.

Deviations: weights are those of examples, as everywhere in Covey, where the paper weighs all devices alike; and updates
beyond a bound of staleness, which the paper's analysis assumes, are refused.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.algorithms.algorithm import Algorithm
from covey.algorithms.fedavg import fedavg
from covey.types.segments import HEADER

__all__ = ["Asynchrony", "asynchrony", "fedbuff", "staleness_factor", "weighed"]

_BUSY_FOR_EACH_IN_BUFFER = 4
_TIMES_THE_USUAL = 10


def fedbuff(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr`` (η, default 1)."""
    return dataclasses.replace(fedavg(settings), name="fedbuff", asynchronous=True)


@dataclass(frozen=True, slots=True)
class Asynchrony:
    """How far devices may be apart.

    Attributes:
        concurrency: how many train at any time.
        max_staleness: so many moves of the model ago an update may have begun, and no more.
    """

    concurrency: int
    max_staleness: int


def asynchrony(settings: Mapping[str, float], goal: int) -> Asynchrony:
    """Return what a plan's settings mean for a buffer of ``goal`` updates.

    ``concurrency`` 0 or absent is four times the goal. With C devices at a time the mean staleness is about C / K:
    ``max_staleness`` 0 or absent is ten times that.
    """
    busy = int(settings.get("concurrency", 0)) or _BUSY_FOR_EACH_IN_BUFFER * goal
    bound = int(settings.get("max_staleness", 0)) or math.ceil(_TIMES_THE_USUAL * busy / goal)
    return Asynchrony(busy, bound)


def staleness_factor(staleness: int) -> float:
    """Return s(τ); 1 for an update of the present model."""
    return 1.0 / math.sqrt(1.0 + staleness)


def weighed(values: Mapping[str, NDArray[np.floating]], staleness: int) -> dict[str, NDArray[np.floating]]:
    """Return an update, given as reals by segment, as it counts: its header, and so its weight, stays as it is."""
    if staleness == 0:
        return dict(values)
    factor = np.float32(staleness_factor(staleness))
    return {name: v if name == HEADER else v * factor for name, v in values.items()}
