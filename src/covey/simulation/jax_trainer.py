"""A trainer on JAX: the programs that a plan's graphs were lowered from, compiled by XLA.

Same examples, same order, same masks, same weighing as the device's trainer; only the engine differs, and with it the
order in which floats are added. XLA compiles a loop around models without convolutions and, because its convolutions
are an order of magnitude slower inside a loop on a CPU, single steps for models with them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covey.device.batches import Chunk, checked_examples, make_chunks, num_distinct, num_steps
from covey.device.trainer import LocalResult, TrainingJob, TrainingStopped, all_shared, hyper_values, never, result_of
from covey.plans.lowering.programs import Programs, prefixed
from covey.plans.task import Local, Task
from covey.simulation.outer_products import ONE, with_outer_products
from covey.types.errors import TrainingError
from covey.types.rng import key_words
from covey.types.tensors import Tensors

__all__ = ["JaxTrainer", "has_convolution"]

_TOTALS = ("examples", "loss", "weight")


class JaxTrainer:
    """Trains jobs of one task under one algorithm's device half; see :class:`covey.device.trainer.Trainer`.

    Each shape of a batch is compiled once. Law: equal jobs and examples give equal bits on one machine with one
    version of JAX and as many threads.
    """

    def __init__(self, task: Task, local: Local | Sequence[Local], *, stepwise: bool | None = None) -> None:
        """Make a trainer.

        Args:
            task: the model and its loss.
            local: the device half of the algorithm's one phase, or of each.
            stepwise: compile single steps (True) or a loop around them (False); None: steps for models that convolve.
        """
        halves = (local,) if isinstance(local, Local) else tuple(local)
        self._phases = tuple(_Compiled(Programs(task, half), stepwise) for half in halves)
        self._on_engine: dict[str, tuple[Any, Any]] = {}

    def run(self, job: TrainingJob, examples: Tensors, should_stop: Callable[[], bool] = never) -> LocalResult:
        """Run ``job`` over ``examples``; errors are those of :meth:`covey.device.trainer.OnnxTrainer.run`."""
        manifest = job.plan.manifest
        phase, compiled = manifest.phases[job.phase], self._phases[job.phase]
        usable = checked_examples(
            examples, manifest.examples.fields, at_least=manifest.min_examples, at_most=manifest.max_examples
        )
        offered = self._placed({**prefixed("params", job.params), **prefixed("shared", all_shared(job))})
        hyper = {k: _number(v) for k, v in hyper_values(manifest, job.hyper).items()}
        # Handed to the engine once, not with every call; parameters that no step reads are dropped by it.
        key = jax.device_put(key_words(job.seed, "dropout"))
        constant = {**offered, **prefixed("hyper", hyper), "key": key, ONE: _number(1.0)}
        carry = dict(compiled.begin(offered))
        count = len(next(iter(usable.values())))
        steps = 0
        for chunk in make_chunks(usable, phase, seed=job.seed):
            if should_stop():
                raise TrainingStopped
            carry = compiled.train(carry, constant, chunk, phase.chunk_steps)
            steps += chunk.num_steps
            if not np.isfinite(carry["metrics.loss"]):
                raise TrainingError(
                    "loss",
                    expected="finite values",
                    got=f"a NaN or an infinity within {steps} steps",
                    hint="training diverged on this device's examples: a lower learning rate usually cures it",
                )
        assert steps == num_steps(count, phase)
        totals = {k: float(carry[f"metrics.{k}"]) for k in manifest.metrics}
        state = {k: v for k, v in carry.items() if k.startswith("state.")}
        ends = {f"totals.{k}": carry[f"metrics.{k}"] for k in _TOTALS}
        outputs = {k: np.asarray(v) for k, v in compiled.finish({**state, **offered, **ends}).items()}
        used = num_distinct(count, phase)
        return result_of(manifest, job.phase, outputs, totals, num_examples=used, num_steps=steps)

    def _placed(self, arrays: Tensors) -> dict[str, Any]:
        """Return ``arrays`` on the engine. Those that came with the last job are there: a cohort shares a checkpoint.

        Only arrays that nobody can write to are taken for the same ones.
        """
        placed = {k: known for k, (array, known) in self._on_engine.items() if arrays.get(k) is array}
        if len(placed) < len(arrays):
            placed |= jax.device_put({k: v for k, v in arrays.items() if k not in placed})
            self._on_engine = {k: (v, placed[k]) for k, v in arrays.items() if not v.flags.writeable}
        return placed


class _Compiled:
    """The programs of one phase, compiled."""

    def __init__(self, programs: Programs, stepwise: bool | None) -> None:
        self._programs = programs
        self.begin = jax.jit(self._begun)
        self.finish = jax.jit(programs.finish)
        self._step_taken = with_outer_products(programs.step_taken)
        # The carry is given away: without that, every step would copy the parameters.
        self._step = jax.jit(self._step_taken, donate_argnums=0)
        self._loop = jax.jit(self._steps, donate_argnums=0)
        self._stepwise = stepwise

    def _begun(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the first step takes: the state, metric sums of zero, and the number of steps taken."""
        sums = {f"metrics.{k}": np.float32(0) for k in self._programs.metrics}
        # Copied, for the first step takes over what it gets, and other devices begin from the same parameters.
        return jax.tree.map(jnp.copy, {**self._programs.begin(inputs), **sums, "step": np.uint32(0)})

    def train(self, carry: dict[str, Any], constant: Mapping[str, Any], chunk: Chunk, room: int) -> dict[str, Any]:
        """Take a chunk's steps; ``room`` is the longest chunk's number of them."""
        if self._stepwise is None:
            x = {**prefixed("batch", {k: v[0] for k, v in chunk.batch.items()}), "mask": chunk.mask[0]}
            self._stepwise = has_convolution(jax.make_jaxpr(self._programs.step_taken)(carry, constant, x).jaxpr)
        if self._stepwise:
            for i in range(chunk.num_steps):
                x = {**prefixed("batch", {k: v[i] for k, v in chunk.batch.items()}), "mask": chunk.mask[i]}
                carry = self._step(carry, constant, x)
            return carry
        # Filled up to one length, so that chunks of every length share one compiled loop.
        xs = {**prefixed("batch", chunk.batch), "mask": chunk.mask}
        xs = {k: _filled(v, room) for k, v in xs.items()}
        return dict(self._loop(carry, constant, xs, np.int32(chunk.num_steps)))

    def _steps(self, carry: dict[str, Any], constant: Mapping[str, Any], xs: Mapping[str, Any], count: Any) -> Any:
        def body(i: Any, carry: dict[str, Any]) -> dict[str, Any]:
            x = {k: jax.lax.dynamic_index_in_dim(v, i, keepdims=False) for k, v in xs.items()}
            return dict(self._step_taken(carry, constant, x))

        return jax.lax.fori_loop(0, count, body, carry)


@lru_cache(maxsize=32)
def _number(value: float) -> Any:
    """Return a float32 on the engine: a round's are the same for all its devices."""
    return jax.device_put(np.float32(value))


def has_convolution(jaxpr: Any) -> bool:
    """Return whether a jaxpr, or any within it, convolves."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns") and has_convolution(inner):
                    return True
    return False


def _filled(array: Any, length: int) -> Any:
    if len(array) == length:
        return array
    out = np.zeros((length, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
