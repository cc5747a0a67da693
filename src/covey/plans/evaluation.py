"""From a training plan to the plan that evaluates its checkpoints on the devices' held-out examples.

An evaluation plan has one phase, whose graph is the training plan's own ``eval``. Its update is the header alone: the
constant 1, the weight, the metric sums, so that they are protected exactly like those of training. Where the server
broadcasts a second model besides the checkpoint, the device evaluates both on the same examples and adds three metrics:
``compared`` (1), ``difference`` (the first model's mean of one chosen metric minus the second's, times
:data:`DIFFERENCE_SCALE`) and ``difference_squared`` (its square). Their sums give the mean and the spread *over
devices*, which is what decides about a release, and nothing of any one device.

A plan ``against`` :data:`~covey.plans.manifest.PERSONAL` broadcasts no second model: each device that uses one tuned on
its own examples compares with that, on held-out examples that neither its training nor its gate can have seen
(:mod:`covey.device.comparison`); ``compared`` is 0 on the others. On the loss, a difference above 0 says that
personal models are better.
"""

import math

import msgspec

from covey.plans.manifest import COMPARISON, EVALUATION_SCHEMA, PERSONAL, AlgorithmRef, Manifest, Phase
from covey.plans.plan import Plan, pack_plan
from covey.types.errors import PlanBuildError

__all__ = ["DIFFERENCE_LIMIT", "DIFFERENCE_SCALE", "comparison", "evaluation_plan", "lower_is_better"]

DIFFERENCE_SCALE = 1024.0
"""A header keeps 20 bits behind the point: a difference of 1e-3 would leave its square one bit. Scaled, squares keep 40
bits, and the largest one still fits below the header's bound of ``2**26``."""

DIFFERENCE_LIMIT = 4.0
"""Larger differences count as this one, so that no single device decides: 4 nats are a factor of 55 in likelihood."""


def evaluation_plan(plan: Plan, *, compares: str = "loss", against: str = "") -> bytes:
    """Return the archive of the evaluation plan of a training plan, unsigned. Needs no JAX: the graph is there.

    Args:
        plan: of the training.
        compares: the metric of the device-level difference: ``loss``, or one of the task's own such as ``correct``.
        against: the second model: empty for one that the server broadcasts, ``personal`` for each device's own.

    Raises:
        PlanBuildError: a plan with differential privacy, or a metric or a second model that there is not.
    """
    m = plan.manifest
    where = f"evaluation of plan {plan.hash[:12]}…"
    if m.privacy.noise is not None:
        raise PlanBuildError(
            where,
            expected="a plan without differential privacy",
            got="one with noise",
            hint="metrics get no noise and are therefore absent; evaluate on examples that you hold yourself",
        )
    own = [k for k in m.metrics if k not in ("examples", "weight")]
    if compares not in own:
        raise PlanBuildError(where, expected=f"a metric among {', '.join(own)}", got=compares)
    if against not in ("", PERSONAL):
        raise PlanBuildError(where, expected=f"a second model: none named, or {PERSONAL}", got=against)
    steps = -(-m.max_examples // m.eval_batch_size)
    phase = Phase(
        name="evaluate",
        graph="eval",
        state=(),
        shared=() if against else m.params,
        segments=(),
        batch_size=m.eval_batch_size,
        epochs=1,
        max_steps=steps,
        chunk_steps=1,
        compares=compares,
        against=against,
    )
    query = msgspec.structs.replace(m.examples.query, split="test")
    changed: Manifest = msgspec.structs.replace(
        m,
        schema=max(m.schema, EVALUATION_SCHEMA),
        algorithm=AlgorithmRef(name="evaluation"),
        examples=msgspec.structs.replace(m.examples, query=query),
        min_examples=1,
        phases=(phase,),
        hyper=(),
        metrics=(*m.metrics, *COMPARISON),
        download="",  # what is measured is what would be released
    )
    return pack_plan(changed, {"eval": plan.graphs["eval"]})


def lower_is_better(metric: str) -> bool:
    """Say which way a metric points: the loss down, every other one (counts of right predictions, say) up."""
    return metric == "loss"


def comparison(metric: str, first: float, second: float) -> dict[str, float]:
    """Return one device's metrics of a comparison, from its means of ``metric`` under both models.

    A mean that is not finite is the worst that there is: a model that breaks down on some devices must not look better
    because just those have nothing to say.
    """
    worst = math.inf if lower_is_better(metric) else -math.inf
    a, b = (mean if math.isfinite(mean) else worst for mean in (first, second))
    difference = 0.0 if a == b else min(DIFFERENCE_LIMIT, max(-DIFFERENCE_LIMIT, a - b)) * DIFFERENCE_SCALE
    return {"compared": 1.0, "difference": difference, "difference_squared": difference**2}
