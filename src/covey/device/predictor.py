"""One prediction after another from a loaded graph: all that can be done before the first is done once."""

import numpy as np

from covey.device.runtime import Graph
from covey.plans.manifest import Manifest
from covey.types.errors import ExampleError
from covey.types.tensors import Array, Tensors

__all__ = ["Predictor"]


class Predictor:
    """A plan's ``predict`` graph with its parameters. Safe to share between threads.

    Raises:
        PlanFormatError: the graph takes something that a device does not know.
    """

    def __init__(self, graph: Graph, manifest: Manifest, params: Tensors) -> None:
        """Keep the parameters as the graph takes them."""
        self._graph = graph
        given = {f"params.{name}": np.ascontiguousarray(value) for name, value in params.items()}
        self._fixed = {name: value for name, value in given.items() if name in graph.inputs}
        self._fields = [
            (f.name, f"input.{f.name}" if f"input.{f.name}" in graph.inputs else "", f.shape, np.dtype(f.dtype))
            for f in manifest.examples.fields
            if f.role == "input"
        ]
        graph.check_inputs({*self._fixed, *(feed for _, feed, _, _ in self._fields if feed)})
        self._names = [name.removeprefix("output.") for name in graph.outputs]

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs for one example (``inputs`` without a batch dimension), each without it too.

        Raises:
            ExampleError: an input that is missing or of another shape or dtype.
        """
        feeds = self._fixed.copy()
        for name, feed, shape, dtype in self._fields:
            given = inputs.get(name)
            if given is None or given.shape != shape or given.dtype != dtype:
                got = "nothing" if given is None else f"{given.dtype.name} {list(given.shape)}"
                raise ExampleError(f"input {name!r}", expected=f"{dtype.name} {list(shape)}", got=got)
            if feed:
                feeds[feed] = given[None]
        return {name: value[0] for name, value in zip(self._names, self._graph.values(feeds), strict=True)}
