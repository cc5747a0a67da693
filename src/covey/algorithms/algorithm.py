"""The server half of an algorithm: ``init``, then for each phase ``shared`` and ``apply``. It never sees one device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey.plans.evaluation import DIFFERENCE_SCALE
from covey.plans.manifest import COMPARISON
from covey.plans.manifest import Phase as PhasePlan
from covey.types.errors import LayoutError
from covey.types.segments import HEADER, SegmentSum
from covey.types.tensors import Tensors, TensorSpec, unflatten_tensors

__all__ = ["Aggregate", "Algorithm", "ServerPhase", "ServerState", "opened_header", "tagged", "untagged"]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """An opened sum over a cohort.

    Attributes:
        num_devices: the opened counter: how many devices are in the sum.
        weight: the sum of the devices' (capped) weights.
        metrics: sums over the cohort, by name.
        segments: for each segment its sum, float64, by tensor name.
    """

    num_devices: int
    weight: float
    metrics: Mapping[str, float]
    segments: Mapping[str, Mapping[str, NDArray[np.float64]]]

    @classmethod
    def opened(
        cls,
        total: SegmentSum,
        phase: PhasePlan,
        metrics: tuple[str, ...],
        reals: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> "Aggregate":
        """Read a sum as reals.

        Args:
            total: the sum.
            phase: of the plan.
            metrics: their names, in the plan's order.
            reals: the segments' sums where their integers are not plain fixed point.

        Raises:
            LayoutError: the counter is not the number of contributions: keys or shares diverged.
        """
        header = opened_header(total)
        found = reals if reals is not None else {s.name: total.reals(s.name) for s in phase.segments}
        segments = {s.name: _cut(found[s.name], s.tensors) for s in phase.segments}
        return cls(total.num_folded, float(header[1]), dict(zip(metrics, header[2:].tolist(), strict=True)), segments)

    def means(self) -> dict[str, float]:
        """Return metric means: the loss over the weight, every task metric over the weight; none where all are absent.

        Under differential privacy metrics would be opened without noise, so that they are absent. Of a comparison of
        two models (:mod:`covey.plans.evaluation`), ``compared`` counts devices, and ``difference`` and
        ``difference_squared`` are means over them.
        """
        if not self.metrics:
            return {}
        weight = max(self.metrics["weight"], 1e-30)
        left_out = ("examples", "weight", *COMPARISON)
        means = {k: v / weight for k, v in self.metrics.items() if k not in left_out}
        if (count := self.metrics.get("compared", 0.0)) >= 1:
            means["compared"] = count
            means["difference"] = self.metrics["difference"] / DIFFERENCE_SCALE / count
            means["difference_squared"] = self.metrics["difference_squared"] / DIFFERENCE_SCALE**2 / count
        return means


def opened_header(total: SegmentSum) -> NDArray[np.float64]:
    """Return the header of a sum: counter, weight, metrics.

    Raises:
        LayoutError: the counter is not the number of contributions: keys or shares diverged.
    """
    header = total.reals(HEADER)
    if round(header[0]) != total.num_folded:
        raise LayoutError(
            "opened sum",
            expected=f"a counter of {total.num_folded}",
            got=f"{header[0]:g}",
            hint="discard the round",
        )
    return header


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the server carries from round to round: the model and whatever the algorithm adds (momentum, say).

    Law: ``extra`` has the names and shapes of ``init`` in every round, so that a restart knows what is its own.
    """

    params: Tensors
    extra: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerPhase:
    """One phase: what is broadcast besides the parameters, and how the aggregate changes the state."""

    shared: Callable[[ServerState], Tensors]
    apply: Callable[[ServerState, Aggregate], ServerState]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The server half. ``phases`` matches the plan's phases one to one.

    ``asynchronous``: devices train from whatever model they fetched, and the server applies a sum once enough updates
    are in it, whenever those began.
    """

    name: str
    init: Callable[[Tensors], ServerState]
    phases: tuple[ServerPhase, ...]
    asynchronous: bool = False


def tagged(tag: str, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
    """Return tensors under ``tag/name``: how an algorithm keeps several sets of the model's shape side by side."""
    return {f"{tag}/{k}": v for k, v in tensors.items()}


def untagged(tag: str, tensors: Tensors) -> Tensors:
    """Return those under ``tag/``, without it. The inverse of :func:`tagged`."""
    start = f"{tag}/"
    return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}


def _cut(vector: NDArray[np.float64], specs: tuple[TensorSpec, ...]) -> dict[str, NDArray[np.float64]]:
    """Cut a float64 vector by specs, keeping float64: sums are rounded to float32 once, after the division."""
    wide = tuple(TensorSpec(s.name, s.shape, "float64") for s in specs)
    return {k: np.asarray(v, np.float64) for k, v in unflatten_tensors(vector, wide).items()}
