"""One prediction after another from a loaded graph: all that can be done before the first is done once."""

import numpy as np

from covey.device.runtime import Graph
from covey.plans.manifest import Manifest
from covey.types.errors import ExampleError
from covey.types.tensors import Array, Tensors

__all__ = ["Predictor"]


class Predictor:
    """A plan's ``predict`` graph with its parameters. Safe to share between threads."""

    def __init__(self, graph: Graph, manifest: Manifest, params: Tensors) -> None:
        """Keep the parameters as the graph takes them."""
        self._graph = graph
        self._fixed = {f"params.{name}": np.ascontiguousarray(value) for name, value in params.items()}
        self._fields = [
            (f.name, f"input.{f.name}", f.shape, np.dtype(f.dtype))
            for f in manifest.examples.fields
            if f.role == "input"
        ]

    def __call__(self, inputs: Tensors) -> dict[str, Array]:
        """Return the outputs for one example (``inputs`` without a batch dimension), each without it too.

        Raises:
            ExampleError: an input that is missing or of another shape or dtype.
        """
        feeds = dict(self._fixed)
        for name, feed, shape, dtype in self._fields:
            given = inputs.get(name)
            if given is None or given.shape != shape or given.dtype != dtype:
                got = "nothing" if given is None else f"{given.dtype.name} {list(given.shape)}"
                raise ExampleError(f"input {name!r}", expected=f"{dtype.name} {list(shape)}", got=got)
            feeds[feed] = given[None]
        outputs = self._graph.run(feeds)
        return {name.removeprefix("output."): value[0] for name, value in outputs.items()}
