"""onnxruntime, set up for a device: one thread, little memory, sessions from verified bytes only."""

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from covey.plans.plan import Plan
from covey.types.errors import PlanFormatError
from covey.types.tensors import Array

__all__ = ["Graph", "GraphCache", "RunStop", "RunStoppedError"]

_ERRORS_ONLY = 3  # onnxruntime's severity: warnings about graphs would go to stderr, past every progress bar


_LOOPS = ("train", "gradient", "eval")
"""Graphs that run many times a session; the others run once."""


class RunStoppedError(Exception):
    """A run that :class:`RunStop` ended. Not for users: whoever set it knows why."""


class RunStop:
    """Ends the runs that were given it, between two operators, from another thread; and every later one at once."""

    def __init__(self) -> None:
        self.is_set = False
        self.plain, self.shrinking = ort.RunOptions(), _shrinking()

    def set(self) -> None:
        """End them."""
        self.is_set = True
        self.plain.terminate = self.shrinking.terminate = True


def _shrinking() -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


_SHRINK = _shrinking()


class Graph:
    """A loaded graph. Safe to run from several threads at once."""

    def __init__(self, model: bytes, where: str, num_threads: int = 1, *, arena: bool = True) -> None:
        """Load ``model``.

        Args:
            model: a serialized ONNX model that passed :mod:`covey.plans.lint`.
            where: how errors name it.
            num_threads: threads inside one operator.
            arena: keep memory between runs. For a graph that runs again and again.

        Raises:
            PlanFormatError: the runtime cannot load it.
        """
        try:
            self._session = ort.InferenceSession(
                model, _options(num_threads, arena), providers=["CPUExecutionProvider"]
            )
        except Exception as e:  # the binding raises many unrelated classes
            raise PlanFormatError(where, expected="a graph that onnxruntime loads", got=_first_line(e)) from e
        self._where, self._arena = where, arena
        self.inputs = frozenset(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array], *, shrink: bool = False, stop: RunStop | None = None) -> dict[str, Array]:
        """Run once. Feeds that the graph does not use are left out.

        Args:
            feeds: arrays by input name.
            shrink: give the arena's free memory back afterwards. Outputs lie in the arena and hold their part of it.
            stop: ends the run from another thread.

        Raises:
            RunStoppedError: ``stop`` was set.
            PlanFormatError: an input that is missing, or of a shape or dtype that the graph does not take.
        """
        given = {k: v for k, v in feeds.items() if k in self.inputs}
        self.check_inputs(given)
        # Scalars come back as NumPy scalars, which cannot be fed in again.
        values = self.values(given, shrink=shrink, stop=stop)
        return {k: np.asarray(v) for k, v in zip(self.outputs, values, strict=True)}

    def check_inputs(self, known: Collection[str]) -> None:
        """Refuse a graph that takes more than the ``known`` inputs.

        Raises:
            PlanFormatError: names some of the others.
        """
        if missing := self.inputs.difference(known):
            raise PlanFormatError(
                self._where, expected="only inputs that a device knows", got=f"{', '.join(sorted(missing)[:3])} as well"
            )

    def values(
        self, given: Mapping[str, Array], *, shrink: bool = False, stop: RunStop | None = None
    ) -> Sequence[Array]:
        """Run once on exactly the graph's inputs, and return the outputs as they come: :meth:`run` without its checks.

        Raises:
            RunStoppedError, PlanFormatError: see :meth:`run`.
        """
        shrink = shrink and self._arena
        options = (stop.shrinking if shrink else stop.plain) if stop is not None else _SHRINK if shrink else None
        try:
            values: Sequence[Array] = self._session.run(self.outputs, given, options)
        except Exception as e:  # as above
            if stop is not None and stop.is_set:
                raise RunStoppedError from e
            raise PlanFormatError(self._where, expected="a graph that runs on its inputs", got=_first_line(e)) from e
        return values


class GraphCache:
    """The loaded graphs of the last few plans, by plan hash and graph name. Safe to share between threads."""

    def __init__(self, *, num_threads: int = 1, max_plans: int = 4) -> None:
        self._num_threads = num_threads
        self._max_plans = max_plans
        self._plans: OrderedDict[str, dict[str, Graph]] = OrderedDict()
        self._lock = threading.Lock()

    def graph(self, plan: Plan, name: str) -> Graph:
        """Return a graph of ``plan``, loading it on first use.

        Raises:
            PlanFormatError: the plan has no such graph, or the runtime cannot load it.
        """
        with self._lock:
            graphs = self._plans.setdefault(plan.hash, {})
            self._plans.move_to_end(plan.hash)
            while len(self._plans) > self._max_plans:
                self._plans.popitem(last=False)
            if name not in graphs:
                if name not in plan.graphs:
                    raise PlanFormatError("plan", expected=f"a graph {name!r}", got=", ".join(sorted(plan.graphs)))
                graphs[name] = Graph(plan.graphs[name], f"plan: {name}.onnx", self._num_threads, arena=name in _LOOPS)
            return graphs[name]


def _options(num_threads: int, arena: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    # Measured on the MNIST CNN: a loop without the arena peaks 30 to 60 MB higher (the heap fragments), a graph that
    # runs once 6 MB lower; memory patterns gain no speed while they reserve every buffer of a chunk in one piece.
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = False
    # A device shares its processor with the person who holds it: a waiting thread sleeps.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
