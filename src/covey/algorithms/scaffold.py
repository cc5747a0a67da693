"""SCAFFOLD, the server half.

S. P. Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, 1910.06378, Algorithm 1.

Every device i keeps a control variate ``c_i`` of its own, the server their mean ``c``. With ``x`` broadcast beside
``c``, a device takes K steps ``y ← y − η_l (g(y) − c_i + c)`` and sends two changes::

    Δy = y − x                               segment ``model``
    Δc = c_i⁺ − c_i                          segment ``control``
         c_i⁺ = c_i − c + (x − y) / (K η_l)  (option II)

    x ← x + η_g Σ Δy_i / |S|
    c ← c + Σ Δc_i / N

``c_i`` never leaves its device. It changes only where the server counted the report, or ``c`` would not be the mean of
the devices' variates any more. N, the number of devices of the population, is part of the plan.

As in the paper the objective is the plain mean over devices, not over examples: with a mean of variates that is not
weighted, weighing the model's segment would only slow the way to the same point.
"""

from collections.abc import Mapping

import numpy as np

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerPhase, ServerState, tagged, untagged
from covey.algorithms.fedavg import MODEL, moved, uniform_mean
from covey.types.errors import UsageError
from covey.types.tensors import Tensors

__all__ = ["CONTROL", "scaffold"]

CONTROL = "control"
"""Name of the segment with the change of the devices' control variates, and of what is broadcast."""


def scaffold(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` must hold ``num_devices`` (N) and may hold ``server_lr`` (η_g, 1).

    Raises:
        UsageError: no number of devices.
    """
    server_lr, num_devices = settings.get("server_lr", 1.0), settings.get("num_devices", 0.0)
    if num_devices < 1:
        raise UsageError("scaffold: num_devices", expected="the devices of the population", got=f"{num_devices:g}")

    def init(params: Tensors) -> ServerState:
        return ServerState(params, tagged(CONTROL, {k: np.zeros(v.shape, np.float32) for k, v in params.items()}))

    def apply(state: ServerState, aggregate: Aggregate) -> ServerState:
        before, sums = untagged(CONTROL, state.extra), aggregate.segments[CONTROL]
        control = {k: (c.astype(np.float64) + sums[k] / num_devices).astype(np.float32) for k, c in before.items()}
        step = {k: server_lr * d for k, d in uniform_mean(aggregate, MODEL).items()}
        return moved(state, step, tagged(CONTROL, control))

    return Algorithm("scaffold", init, (ServerPhase(lambda state: state.extra, apply),))
