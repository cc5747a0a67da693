"""FedNova, the server half.

J. Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, 2007.07481,
equations 7 and 8. A device that takes more steps moves further; averaging the moves minimises another objective than
the one that was meant. FedNova averages the moves per step and gives all of them one common length::

    d_i = (w_i − x) / ‖a_i‖₁          segment ``model``, weighted by examples
    τ_i = ‖a_i‖₁                      segment ``steps``, weighted by examples, as a fraction of the most steps T
    τ_eff = Σ n_i τ_i / Σ n_i
    x ← x + η τ_eff Σ n_i d_i / Σ n_i

``‖a_i‖₁`` is the number of steps for SGD; for momentum ρ it is ``Σ_j (1 − ρ^j) / (1 − ρ)``, j from 1 to the number of
steps (section 4). Both sums are plain sums, so that they can be masked; nobody learns one device's number of steps.
"""

from collections.abc import Mapping

from covey.algorithms.algorithm import Aggregate, Algorithm, ServerPhase, ServerState
from covey.algorithms.fedavg import MODEL, moved, weighted_mean
from covey.types.errors import UsageError

__all__ = ["STEPS", "fednova"]

STEPS = "steps"
"""Name of the segment with the number of steps, and of the one tensor in it."""


def fednova(settings: Mapping[str, float]) -> Algorithm:
    """Return the server half; ``settings`` must hold ``most_steps`` (T) and may hold ``server_lr`` (η, default 1).

    Raises:
        UsageError: no number of steps.
    """
    server_lr, most_steps = settings.get("server_lr", 1.0), settings.get("most_steps", 0.0)
    if most_steps < 1:
        raise UsageError("fednova: most_steps", expected="the most steps of a session", got=f"{most_steps:g}")

    def apply(state: ServerState, aggregate: Aggregate) -> ServerState:
        effective = most_steps * float(weighted_mean(aggregate, STEPS)["value"][0])
        step = {k: server_lr * effective * d for k, d in weighted_mean(aggregate, MODEL).items()}
        return moved(state, step, state.extra)

    return Algorithm("fednova", lambda params: ServerState(params), (ServerPhase(lambda state: {}, apply),))
