"""What an author writes: a task in JAX and an algorithm's local half. This module itself does not import JAX.

All losses, weights and metrics are *per example*, so that masks, sums and means are the framework's business::

    Task(
        name="mnist-2nn",
        init=lambda key: {"w": ...},                      # -> tree of float32 parameters
        loss=lambda params, batch, key: Out(loss, weight, {"correct": ...}),
        predict=lambda params, inputs: {"probabilities": ...},
        examples=ExampleSchema(fields=(...), query=Query(collection="digits")),
    )
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from covey.plans.manifest import KEPT, Budget, Eligibility, ExampleSchema, HyperBound, PrivacyTerms

__all__ = ["ANCHOR", "KEPT", "Local", "Out", "PlanOptions", "Task"]

ANCHOR = "anchor"
"""Where an anchored algorithm's ``step`` finds the checkpoint, among what is shared."""

Tree = Any
"""A nested dict, list or tuple of arrays: a JAX pytree."""


@dataclass(frozen=True, slots=True)
class Out:
    """What a loss returns; every array has shape ``[B]``.

    Attributes:
        loss: the example's loss, *summed* over whatever it predicts (characters of a line).
        weight: how many predictions that sum covers; 1 for a classifier.
        metrics: further sums for each example, such as ``correct``: the count of right predictions. A fraction is
            ``metric / weight``.

    The objective of a step is ``sum(mask * loss) / max(sum(mask * weight), 1)``.
    """

    loss: Any
    weight: Any
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A model and its loss, in JAX. ``predict`` may be None for a task that is only trained.

    ``loss`` gets a key that differs for every step of training, for dropout and augmentation; where a model is
    evaluated the key is None, and nothing may be random. ``predict`` never gets one.
    """

    name: str
    init: Callable[[Any], Tree]
    loss: Callable[[Tree, Mapping[str, Any], Any], Out]
    examples: ExampleSchema
    predict: Callable[[Tree, Mapping[str, Any]], Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Local:
    """The device's half of one phase of an algorithm, traced into graphs when a plan is built.

    Attributes:
        algorithm: name of the server half, and the default ``settings`` for it.
        graph: ``train``: ``step`` gets the gradient of the masked mean loss at ``state["params"]``. ``gradient``: the
            parameters stay fixed and ``step`` gets the gradient of the masked *sum* of the loss at the broadcast
            parameters.
        init: ``(params, shared) -> state``, a dict tree; a ``train`` state holds ``params``.
        step: ``(state, shared, grad, hyper) -> state``; ``hyper`` maps a name to a float32 scalar.
        finish: ``(state, params, shared, totals) -> {segment: tree}``; ``totals`` holds the float32 scalars
            ``examples``, ``weight`` and ``loss``, summed over all steps.
        shared: ``params -> tree`` that gives the shapes of what the server broadcasts besides the parameters, or None.
        hyper: the per-round values with default and bounds.
        max_delta: for each segment, the largest magnitude before weighting.
        weighting: for each segment, ``examples`` or ``none``.
        kept: ``params -> tree`` that gives the shapes of what the device keeps from session to session, or None. It
            starts at zero, is found in ``shared["kept"]``, and ``finish`` returns its successor as ``"kept"``; it is
            never sent.
        anchored: whether ``step`` needs the checkpoint itself, as ``shared["anchor"]``.
        exact: the segments that no compression touches: a few numbers that must arrive as they are.
    """

    algorithm: str
    graph: str
    init: Callable[[Tree, Tree], Tree]
    step: Callable[[Tree, Tree, Tree, Mapping[str, Any]], Tree]
    finish: Callable[[Tree, Tree, Tree, Mapping[str, Any]], Mapping[str, Tree]]
    hyper: tuple[HyperBound, ...]
    max_delta: Mapping[str, float]
    weighting: Mapping[str, str]
    shared: Callable[[Tree], Tree] | None = None
    kept: Callable[[Tree], Tree] | None = None
    anchored: bool = False
    exact: tuple[str, ...] = ()
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What a plan fixes besides the mathematics. ``max_steps`` None: what ``epochs`` over ``max_examples`` need.

    ``compression`` is the spec by which every segment is encoded, ``download`` that of checkpoints.
    ``gradient_batch_size`` is that of gradient phases, where the batch size only bounds memory; None: ``batch_size``.
    """

    batch_size: int = 10
    gradient_batch_size: int | None = None
    epochs: int = 1
    max_steps: int | None = None
    chunk_steps: int = 16
    eval_batch_size: int = 50
    min_examples: int = 1
    max_examples: int = 10_000
    compression: str = "float32"
    download: str = ""
    eligibility: Eligibility = field(default_factory=Eligibility)
    budget: Budget = field(default_factory=Budget)
    privacy: PrivacyTerms = field(default_factory=PrivacyTerms)
