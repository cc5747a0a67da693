"""Evaluate a model, and serve it, on the device: the plan's ``eval`` and ``predict`` graphs on onnxruntime."""

from collections.abc import Callable

import numpy as np

from covey.device.batches import checked_examples, padded_batches
from covey.device.predictor import Predictor
from covey.device.runtime import GraphCache
from covey.plans.plan import Plan
from covey.types.tensors import Array, Tensors

__all__ = ["Evaluator", "evaluate", "predict"]


class Evaluator:
    """Keeps a plan's graphs loaded between calls. Safe to share between threads."""

    def __init__(self, plan: Plan, *, num_threads: int = 1, graphs: GraphCache | None = None) -> None:
        self._plan = plan
        self._graphs = graphs or GraphCache(num_threads=num_threads)

    def evaluate(
        self, params: Tensors, examples: Tensors, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Return metric *sums* over all examples, by the graph's names: add them up, then divide.

        A fraction such as accuracy is ``metric / weight``. Each batch is summed in float32 by the graph, the batches
        in float64 here, so that counts stay exact beyond ``2**24``. ``before_batch`` may raise, to end it early.

        Raises:
            ExampleError, TooFewExamplesError: see :func:`covey.device.batches.checked_examples`.
        """
        manifest = self._plan.manifest
        graph = self._graphs.graph(self._plan, "eval")
        fixed = {f"params.{k}": v for k, v in params.items()}
        fixed |= {f"metrics.{k}": np.zeros((), np.float32) for k in manifest.graph_metrics}
        totals = dict.fromkeys(manifest.graph_metrics, 0.0)
        usable = checked_examples(examples, manifest.examples.fields)
        for chunk in padded_batches(usable, manifest.eval_batch_size):
            before_batch()
            batch = {f"batch.{k}": v[0] for k, v in chunk.batch.items()}
            sums = graph.run({**fixed, **batch, "mask": chunk.mask[0]})
            for name in totals:
                totals[name] += float(sums[f"next.metrics.{name}"])
        return totals

    def predict(self, params: Tensors, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs for one example (``inputs`` without a batch dimension), each without it too.

        Raises:
            ExampleError: an input that is missing or of another shape or dtype.
            PlanFormatError: the plan has no ``predict`` graph.
        """
        graph = self._graphs.graph(self._plan, "predict")
        return Predictor(graph, self._plan.manifest, params)({k: np.asarray(v) for k, v in inputs.items()})


def evaluate(plan: Plan, params: Tensors, examples: Tensors) -> dict[str, float]:
    """Return metric sums over ``examples``: :meth:`Evaluator.evaluate`, loading the graph for this one call."""
    return Evaluator(plan).evaluate(params, examples)


def predict(plan: Plan, params: Tensors, inputs: Tensors) -> dict[str, Array]:
    """Return the outputs for one example: :meth:`Evaluator.predict`, loading the graph for this one call."""
    return Evaluator(plan).predict(params, inputs)
