"""A trainer on JAX: the programs that a plan's graphs were lowered from, compiled by XLA.

Same examples, same order, same masks, same weighing as the device's trainer; only the engine differs, and with it the
order in which floats are added. Convolutions and pooling are rewritten where that is faster; XLA compiles a loop around
the steps and, because its own convolutions are an order of magnitude slower inside a loop on a CPU, single steps for
models that keep some.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from covey.device.batches import Chunk, checked_examples, make_chunks, num_distinct, num_steps
from covey.device.trainer import LocalResult, TrainingJob, TrainingStopped, all_shared, hyper_values, never, result_of
from covey.plans.lowering.programs import Programs, prefixed
from covey.plans.task import Local, Task
from covey.simulation.rewriting import has_primitive, rewritten
from covey.types.errors import TrainingError
from covey.types.rng import key_words
from covey.types.tensors import Tensors

__all__ = ["JaxTrainer"]

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
            stepwise: compile single steps (True) or a loop around them (False); None: steps for models with
                convolutions that are not rewritten.
        """
        halves = (local,) if isinstance(local, Local) else tuple(local)
        self._phases = tuple(_Compiled(Programs(task, half), stepwise) for half in halves)

    def run(self, job: TrainingJob, examples: Tensors, should_stop: Callable[[], bool] = never) -> LocalResult:
        """Run ``job`` over ``examples``; errors are those of :meth:`covey.device.trainer.OnnxTrainer.run`."""
        manifest = job.plan.manifest
        phase, compiled = manifest.phases[job.phase], self._phases[job.phase]
        usable = checked_examples(
            examples, manifest.examples.fields, at_least=manifest.min_examples, at_most=manifest.max_examples
        )
        params, shared = prefixed("params", job.params), prefixed("shared", all_shared(job))
        hyper = {k: np.float32(v) for k, v in hyper_values(manifest, job.hyper).items()}
        # Handed to the engine once, not with every call; parameters that no step reads are dropped by it.
        constant = jax.device_put(
            {**params, **shared, **prefixed("hyper", hyper), "key": key_words(job.seed, "dropout")}
        )
        carry = dict(compiled.begin({**params, **shared}))
        carry |= {f"metrics.{k}": np.float32(0) for k in manifest.metrics}
        carry["step"] = np.uint32(0)
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
        outputs = {k: np.asarray(v) for k, v in compiled.finish({**state, **params, **shared, **ends}).items()}
        used = num_distinct(count, phase)
        return result_of(manifest, job.phase, outputs, totals, num_examples=used, num_steps=steps)


class _Compiled:
    """The programs of one phase, compiled."""

    def __init__(self, programs: Programs, stepwise: bool | None) -> None:
        self._step_taken = rewritten(programs.step_taken)
        self.begin = jax.jit(programs.begin)
        self.finish = jax.jit(programs.finish)
        # The carry is given away: without that, every step would copy the parameters.
        self._step = jax.jit(self._step_taken, donate_argnums=0)
        self._loop = jax.jit(self._steps, donate_argnums=0)
        self._stepwise = stepwise

    def train(self, carry: dict[str, Any], constant: Mapping[str, Any], chunk: Chunk, room: int) -> dict[str, Any]:
        """Take a chunk's steps; ``room`` is the longest chunk's number of them."""
        if self._stepwise is None:
            x = {**prefixed("batch", {k: v[0] for k, v in chunk.batch.items()}), "mask": chunk.mask[0]}
            self._stepwise = has_primitive(
                jax.make_jaxpr(self._step_taken)(carry, constant, x).jaxpr, "conv_general_dilated"
            )
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
            return self._step_taken(carry, constant, x)

        return jax.lax.fori_loop(0, count, body, carry)


def _filled(array: Any, length: int) -> Any:
    if len(array) == length:
        return array
    out = np.zeros((length, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
