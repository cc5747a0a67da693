"""FedBuff, the server half: asynchronous aggregation through a buffer.

J. Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, 2106.06639, Algorithm 1. Devices come and
go without rounds: each trains from the model of the moment in which it was admitted. The server adds what arrives to a
buffer, and once K updates are in it, moves the model and empties the buffer::

    w ← w + η Σ s(τ_i) n_i Δ_i / Σ n_i,   s(τ) = 1 / √(1 + τ)

where the staleness τ_i counts the server's moves since the device fetched its model. The *device* multiplies by s
before it encodes its update (:mod:`covey.device.staleness`), so that the server still needs a sum only.

Secure aggregation is refused: its masks cancel only within a cohort that was fixed before anyone trained.

Deviation: weights are those of examples, as everywhere in Covey; the paper weighs all devices alike.
"""

import dataclasses
from collections.abc import Mapping

from covey.algorithms.algorithm import Algorithm
from covey.algorithms.fedavg import fedavg

__all__ = ["fedbuff"]


def fedbuff(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` may hold ``server_lr`` (η, default 1)."""
    return dataclasses.replace(fedavg(settings), name="fedbuff", asynchronous=True)
