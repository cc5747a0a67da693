"""Fine-tune a release on one device's own examples, and decide whether the result is better than chance explains.

The plan's own train graph runs, with the plan's own learning rate, pass after pass over the train part. After some of
the passes the result is a candidate, and so are points on the straight line between the release and it: few examples
pull a model too far, and going part of the way keeps most of what helps (M. Wortsman et al., Robust Fine-Tuning of
Zero-Shot Models, 2109.01903, section 3). The candidate with the lowest loss on the gate part is tested.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from covey.device.comparison import Part, block_losses, sign_flip_p_value
from covey.device.evaluate import Evaluator
from covey.device.released import Served
from covey.device.trainer import OnnxTrainer, TrainingJob, TrainingStopped, never
from covey.plans.manifest import TRAINED, Manifest
from covey.types.errors import TooFewExamplesError, TrainingError, UpdateRangeError
from covey.types.rng import derive_seed
from covey.types.tensors import Tensors, unflatten_tensors

__all__ = ["ERROR_LEVEL", "PASSES", "SHARES", "Tuning", "best_candidate", "fine_tuned", "tunable_phase"]

PASSES = (2, 4, 8)
"""After how many passes over the train part a tuned model is a candidate."""

SHARES = (1.0, 0.5, 0.25)
"""How much of the way from the release to it."""

ERROR_LEVEL = 0.05
"""How often a tuned model that is no better may be taken, all candidates together (Bonferroni)."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tuning led to.

    Attributes:
        used: whether the tuned model serves now.
        reason: why not, in words; empty where it is.
        passes: of the candidate that did best on the gate part.
        share: how much of the way from the release it went.
        p_value: how often chance alone makes its improvement; the smallest over candidates times their number.
        num_train: examples that were trained on.
        num_gate: examples that decided.
        global_loss: mean loss of the release on the gate part.
        personal_loss: mean loss of the candidate there.
    """

    used: bool
    reason: str = ""
    passes: int = 0
    share: float = 0.0
    p_value: float = 1.0
    num_train: int = 0
    num_gate: int = 0
    global_loss: float = float("nan")
    personal_loss: float = float("nan")


def tunable_phase(manifest: Manifest) -> int | None:
    """Return the phase whose graph trains the model by itself; None if there is none.

    It must need nothing from the server but the parameters, and send their change: FedAvg's does, FedSGD's gradient
    does not train.
    """
    for index, phase in enumerate(manifest.phases):
        alone = all(t.name.startswith(f"{TRAINED}/") for t in phase.shared)
        one = len(phase.segments) == 1 and phase.segments[0].tensors == manifest.params
        if phase.graph == "train" and alone and one:
            return index
    return None


def fine_tuned(
    trainer: OnnxTrainer,
    served: Served,
    phase: int,
    params: Tensors,
    examples: Tensors,
    seed: bytes,
    should_stop: Callable[[], bool] = never,
) -> Tensors:
    """Return the parameters after one more pass over ``examples`` by the plan's own train graph.

    Raises:
        CoveyError: see :meth:`covey.device.trainer.OnnxTrainer.run`.
        TrainingStopped: ``should_stop`` said so.
    """
    plan, this = served.plan, served.plan.manifest.phases[phase]
    shared = {t.name: np.ones(t.shape, np.bool_) for t in this.shared}  # every parameter moves
    job = TrainingJob(plan=plan, phase=phase, params=params, shared=shared, hyper={}, seed=seed)
    result = trainer.run(job, examples, should_stop)
    segment = this.segments[0]
    vector = result.segments[segment.name]
    if segment.weighting == "examples":
        vector = vector / np.float32(result.weight)
    change = unflatten_tensors(vector, segment.tensors)
    return {name: np.add(value, change[name], dtype=np.float32) for name, value in params.items()}


def best_candidate(
    served: Served,
    parts: Mapping[str, Part],
    trainer: OnnxTrainer,
    evaluator: Evaluator,
    seed: bytes,
    should_stop: Callable[[], bool] = never,
) -> tuple[Tuning, Tensors | None]:
    """Tune, compare on the gate part, and return the best candidate if chance does not explain that it is better.

    Raises:
        TrainingStopped: ``should_stop`` said so.
    """
    phase, train, gate = tunable_phase(served.plan.manifest), parts["train"], parts["gate"]
    none = Tuning(used=False, num_train=len(train), num_gate=len(gate))
    if phase is None:
        return replace(none, reason="the plan has no graph that trains the model by itself"), None
    if not len(train) or not len(gate):
        return replace(none, reason="too few examples"), None
    before = block_losses(evaluator, served.params, gate)
    params, best, best_params, problem = served.params, none, served.params, ""
    for number in range(1, PASSES[-1] + 1):
        order = derive_seed(seed, "tuning", number)
        try:
            params = fine_tuned(trainer, served, phase, params, train.examples, order, should_stop)
        except (TooFewExamplesError, TrainingError, UpdateRangeError) as error:
            problem = str(error)  # too few, or it diverged: the candidates before it stand
            break
        for share in SHARES if number in PASSES else ():
            if should_stop():
                raise TrainingStopped
            candidate = _between(served.params, params, share)
            after = block_losses(evaluator, candidate, gate)
            if best is none or after.mean() < best.personal_loss:
                p_value = min(1.0, len(PASSES) * len(SHARES) * sign_flip_p_value(before - after))
                losses = float(before.mean()), float(after.mean())
                best = replace(
                    none, passes=number, share=share, p_value=p_value, global_loss=losses[0], personal_loss=losses[1]
                )
                best_params = candidate
    if best is none:
        return replace(none, reason=problem), None
    if best.p_value > ERROR_LEVEL:
        return replace(best, reason="not better than the release, as far as the gate part can tell"), None
    return replace(best, used=True), best_params


def _between(start: Tensors, end: Tensors, share: float) -> Tensors:
    """Return the point at ``share`` of the way from ``start`` to ``end``."""
    if share == 1.0:
        return end
    out = {}
    for name, last in end.items():
        change = np.subtract(last, start[name], dtype=np.float32)
        out[name] = np.add(start[name], np.float32(share) * change, dtype=np.float32)
    return out
