"""Train, or evaluate, on one device: run a plan's graphs over its examples and return the weighted update.

The order is that of :mod:`covey.plans.manifest`: ``begin`` makes the state, the chunks of ``train`` or ``gradient``
carry it along, ``finish`` turns it into the segments of the update. An evaluation runs ``eval`` under one model or two,
and its update is the header alone. Between chunks (about a second of work each) and while one runs the caller is asked
whether to go on.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from covey.device.batches import checked_examples, make_chunks, num_distinct, num_steps
from covey.device.comparison import split
from covey.device.evaluate import Evaluator
from covey.device.runtime import GraphCache
from covey.device.watch import TrainingStopped, Watch, never
from covey.plans.evaluation import comparison
from covey.plans.manifest import COMPARISON, KEPT, PERSONAL, Manifest, SegmentPlan
from covey.plans.plan import Plan
from covey.types.errors import PlanFormatError, PlanRefusedError, TrainingError, UpdateRangeError
from covey.types.rng import key_words
from covey.types.segments import HEADER
from covey.types.tensors import Array, Tensors, flatten_tensors, specs_of

__all__ = [
    "LocalResult",
    "OnnxTrainer",
    "Trainer",
    "TrainingJob",
    "TrainingStopped",
    "all_shared",
    "hyper_values",
    "never",
    "result_of",
]

_TOTALS = ("examples", "loss", "weight")
_POLL_S = 0.1
_NO_NUMBER = 2.0**25
"""What a metric sum that is not finite, or too large, counts as in an evaluation: near the most that a header takes."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What to train, from where, and how.

    Attributes:
        plan: verified (see :mod:`covey.device.policy`).
        phase: index into the manifest's phases.
        params: the checkpoint, by name; may be read-only views.
        shared: what is broadcast besides; empty where the phase needs nothing.
        hyper: the values that the assignment sets; the plan's defaults fill the rest.
        seed: 32 bytes for the order of examples and for dropout.
        kept: what this device kept from its last session under the same algorithm; a first session has nothing.
        personal: the tuned model that this device uses, for an evaluation against it; empty: none. Never sent.
    """

    plan: Plan
    phase: int
    params: Tensors
    shared: Tensors
    hyper: Mapping[str, float]
    seed: bytes
    kept: Tensors = field(default_factory=dict)
    personal: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What training gives.

    Attributes:
        segments: the update as reals, already weighted: the header (float64), then the phase's own (float32).
        weight: ``min(num_examples, max_weight)``.
        metrics: sums over all steps, by the manifest's names.
        num_examples: how many different examples were used.
        num_steps: how many steps were taken.
        kept: what the device keeps for its next session once this update is counted; never sent.
    """

    segments: dict[str, NDArray[np.floating]]
    weight: float
    metrics: dict[str, float]
    num_examples: int
    num_steps: int
    kept: Tensors = field(default_factory=dict)


class Trainer(Protocol):
    """Anything that can run a job on a device's examples."""

    def run(self, job: TrainingJob, examples: Tensors, should_stop: Callable[[], bool]) -> LocalResult:
        """Train; see :meth:`OnnxTrainer.run`."""
        ...


class OnnxTrainer:
    """The trainer of a device: onnxruntime, one thread, sessions cached by plan hash.

    Several devices in one process may share one trainer: at most ``max_parallel`` of them train at a time, because the
    memory for activations is per run; the others wait, and stop waiting when their ``should_stop`` says so. That
    memory is given back after a job's last step.
    """

    def __init__(
        self,
        *,
        num_threads: int = 1,
        max_parallel: int = 1,
        graphs: GraphCache | None = None,
        within_budget: bool = False,
    ) -> None:
        """Make a trainer that has loaded nothing yet.

        Args:
            num_threads: threads inside one operator.
            max_parallel: how many jobs train at a time.
            graphs: loaded graphs to share.
            within_budget: end a job by which the process grows beyond the plan's memory budget. For a process that
                does little else meanwhile.
        """
        self._within_budget = within_budget
        self._graphs = graphs or GraphCache(num_threads=num_threads)
        self._slots = threading.BoundedSemaphore(max_parallel)

    def run(self, job: TrainingJob, examples: Tensors, should_stop: Callable[[], bool] = never) -> LocalResult:
        """Run ``job`` over ``examples`` (oldest first; only the first ``max_examples`` count).

        Raises:
            ExampleError, TooFewExamplesError: see :func:`covey.device.batches.checked_examples`.
            PlanRefusedError: a per-round value outside its bounds.
            PlanFormatError: graphs that do not fit the manifest.
            TrainingError: a NaN or an infinity in the loss or the update.
            UpdateRangeError: a change larger than the plan allows.
            TrainingStopped: ``should_stop`` said so, between two chunks or within one.
            OverBudgetError: more memory than the plan says.
        """
        manifest = job.plan.manifest
        usable = checked_examples(
            examples, manifest.examples.fields, at_least=manifest.min_examples, at_most=manifest.max_examples
        )
        hyper = hyper_values(manifest, job.hyper)
        while not self._slots.acquire(timeout=_POLL_S):
            if should_stop():
                raise TrainingStopped
        budget_bytes = manifest.budget.memory_bytes if self._within_budget else None
        try:
            with Watch(should_stop, budget_bytes=budget_bytes) as watch:
                if manifest.phases[job.phase].graph == "eval":
                    return self._evaluate(job, usable, watch)
                return self._train(job, usable, hyper, watch)
        finally:
            self._slots.release()

    def _train(self, job: TrainingJob, examples: Tensors, hyper: Mapping[str, float], watch: Watch) -> LocalResult:
        manifest = job.plan.manifest
        phase = manifest.phases[job.phase]
        params, shared = _prefixed("params", job.params), _prefixed("shared", all_shared(job))
        constant = {**params, **shared, "key": key_words(job.seed, "dropout")}
        constant |= {f"hyper.{k}": np.asarray(v, np.float32) for k, v in hyper.items()}
        loop = self._graphs.graph(job.plan, phase.graph)
        carry = self._graphs.graph(job.plan, phase.begin).run({**params, **shared}, stop=watch.stop)
        carry |= {f"metrics.{k}": np.zeros((), np.float32) for k in manifest.metrics}
        carry["step"] = np.zeros((), np.uint32)
        count = _count(examples)
        steps, all_steps = 0, num_steps(count, phase)
        for chunk in make_chunks(examples, phase, seed=job.seed):
            watch.check()
            feeds = {**constant, **_prefixed("batch", chunk.batch), "mask": chunk.mask}
            steps += chunk.num_steps
            after = loop.run({**feeds, **carry}, shrink=steps == all_steps, stop=watch.stop)
            # What a graph leaves unchanged it may leave out; the rest replaces its predecessor, which is then free.
            carry |= {k.removeprefix("next."): v for k, v in after.items()}
            _check_loss(carry["metrics.loss"], steps)
        watch.check()
        totals = {k: float(carry[f"metrics.{k}"]) for k in manifest.metrics}
        feeds = {**carry, **params, **shared, **{f"totals.{k}": carry[f"metrics.{k}"] for k in _TOTALS}}
        outputs = self._graphs.graph(job.plan, phase.finish).run(feeds, stop=watch.stop)
        del carry, after, feeds  # the update is about to be copied: the state has served
        used = num_distinct(count, phase)
        return result_of(manifest, job.phase, outputs, totals, num_examples=used, num_steps=steps)

    def _evaluate(self, job: TrainingJob, examples: Tensors, watch: Watch) -> LocalResult:
        """Evaluate the checkpoint and, where there is a second model, compare both on the same examples."""
        manifest = job.plan.manifest
        phase = manifest.phases[job.phase]
        evaluator = Evaluator(job.plan, graphs=self._graphs)
        totals = first = evaluator.evaluate(job.params, examples, watch.check)
        other, common = job.shared, examples
        if phase.against == PERSONAL:
            # What is held out may equal what the personal model was tuned or chosen on; in this part nothing can.
            other, common = job.personal, split(examples)["report"].examples
            if other and _count(common):
                first = evaluator.evaluate(job.params, common, watch.check)
        compared = dict.fromkeys(COMPARISON, 0.0)
        if other and _count(common):
            second = evaluator.evaluate(other, common, watch.check)
            means = (t[phase.compares] / max(t["weight"], 1.0) for t in (first, second))
            compared = comparison(phase.compares, *means)
        totals = {k: v if abs(v) < _NO_NUMBER else _NO_NUMBER for k, v in totals.items()}
        count = _count(examples)
        steps = -(-count // manifest.eval_batch_size)
        return result_of(manifest, job.phase, {}, {**totals, **compared}, num_examples=count, num_steps=steps)


def hyper_values(manifest: Manifest, assigned: Mapping[str, float]) -> dict[str, float]:
    """Return the per-round values: the plan's defaults, overridden by what was assigned.

    Raises:
        PlanRefusedError: a name that the plan does not have, or a value outside its bounds (a NaN is outside).
    """
    bounds = {h.name: h for h in manifest.hyper}
    for name, value in assigned.items():
        if name not in bounds:
            raise PlanRefusedError("assignment", expected=f"values for {', '.join(bounds) or 'nothing'}", got=name)
        bound = bounds[name]
        if not bound.low <= value <= bound.high:
            raise PlanRefusedError(
                f"assignment: {name}", expected=f"between {bound.low:g} and {bound.high:g}", got=f"{value:g}"
            )
    return {name: float(assigned.get(name, h.default)) for name, h in bounds.items()}


def all_shared(job: TrainingJob) -> Tensors:
    """Return what the graphs take as ``shared``: the broadcast, and what the device kept, zeros at first.

    Raises:
        PlanFormatError: what was kept is not what the plan keeps.
    """
    specs = job.plan.manifest.phases[job.phase].kept
    if not specs:
        return job.shared
    kept = job.kept or {s.name: np.zeros(s.shape, s.dtype) for s in specs}
    if specs_of(kept) != tuple(sorted(specs)):
        raise PlanFormatError("kept state", expected="the tensors that the plan keeps", got="others")
    return {**job.shared, **{f"{KEPT}/{k}": v for k, v in kept.items()}}


def result_of(
    manifest: Manifest,
    phase: int,
    outputs: Tensors,
    totals: Mapping[str, float],
    *,
    num_examples: int,
    num_steps: int,
) -> LocalResult:
    """Weigh an update; every trainer ends here, so that all of them weigh alike.

    Args:
        manifest: the plan's.
        phase: index of the phase.
        outputs: what ``finish`` gave, by ``<segment>.<tensor>``.
        totals: metric sums over all steps, by the manifest's names.
        num_examples: how many different examples were used.
        num_steps: how many steps were taken.

    Raises:
        TrainingError: a NaN or an infinity.
        UpdateRangeError: a change beyond the segment's ``max_delta``.
        LayoutError: outputs that are not those of the manifest.
    """
    weight = float(min(num_examples, manifest.privacy.max_weight))
    header = np.array([1.0, weight, *(totals[k] for k in manifest.metrics)], np.float64)
    if not np.isfinite(header).all():
        raise _diverged("metrics", num_steps)
    segments: dict[str, NDArray[np.floating]] = {HEADER: header}
    for s in manifest.phases[phase].segments:
        vector = flatten_tensors(_stripped(s.name, outputs), s.tensors)
        _check_delta(vector, s, num_steps)
        if s.weighting == "examples":
            np.multiply(vector, np.float32(weight), out=vector)
        segments[s.name] = vector
    kept = _stripped(KEPT, outputs)
    if not all(np.isfinite(v).all() for v in kept.values()):
        raise _diverged("kept state", num_steps)
    metrics = {k: float(totals[k]) for k in manifest.metrics}
    return LocalResult(segments, weight, metrics, num_examples, num_steps, kept)


def _count(examples: Tensors) -> int:
    return len(next(iter(examples.values())))


def _check_loss(loss: Array, steps: int) -> None:
    if not np.isfinite(loss):
        raise _diverged("loss", steps)


def _check_delta(vector: NDArray[np.float32], segment: SegmentPlan, steps: int) -> None:
    # NaN and infinity propagate through both reductions, so no temporary of the vector's size is made.
    largest = max(float(vector.max()), -float(vector.min())) if vector.size else 0.0
    if not np.isfinite(largest):
        raise _diverged(f"segment {segment.name!r}", steps)
    if largest > segment.max_delta:
        raise UpdateRangeError(
            f"segment {segment.name!r}",
            expected=f"changes of at most {segment.max_delta:g}",
            got=f"{largest:g}",
            hint="lower the learning rate, or raise max_delta in the plan",
        )


def _diverged(where: str, steps: int) -> TrainingError:
    return TrainingError(
        where,
        expected="finite values",
        got=f"a NaN or an infinity within {steps} steps",
        hint="training diverged on this device's examples: a lower learning rate usually cures it",
    )


def _prefixed(prefix: str, tensors: Tensors) -> dict[str, Array]:
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def _stripped(prefix: str, tensors: Tensors) -> dict[str, Array]:
    start = f"{prefix}."
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
