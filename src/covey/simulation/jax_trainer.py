"""A trainer on JAX: the programs that a plan's graphs were lowered from, compiled by XLA.

Same examples, same order, same masks, same weighing as the device's trainer; only the engine differs, and with it the
order in which floats are added. Convolutions, pooling and some gradients are rewritten where that is faster; XLA
compiles a loop around the steps and, because its own convolutions are an order of magnitude slower inside a loop on a
CPU, single steps for models that keep some.
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
        constant = {**offered, **prefixed("hyper", hyper), "key": key}
        count = len(next(iter(usable.values())))
        steps, carry, outputs = 0, None, None
        for chunk in make_chunks(usable, phase, seed=job.seed):
            if should_stop():
                raise TrainingStopped
            steps += chunk.num_steps
            if steps == num_steps(count, phase) <= phase.chunk_steps and not compiled.is_stepwise(constant, chunk):
                outputs, carry = compiled.whole(offered, constant, chunk, phase.chunk_steps)
            else:
                carry = compiled.train(carry or compiled.begin(offered), constant, chunk, phase.chunk_steps)
            if not np.isfinite(carry["metrics.loss"]):
                raise TrainingError(
                    "loss",
                    expected="finite values",
                    got=f"a NaN or an infinity within {steps} steps",
                    hint="training diverged on this device's examples: a lower learning rate usually cures it",
                )
        assert carry is not None, "there is at least one example"
        totals = {k: float(carry[f"metrics.{k}"]) for k in manifest.metrics}
        ended = {k: np.asarray(v) for k, v in (outputs or compiled.finish(offered, carry)).items()}
        used = num_distinct(count, phase)
        return result_of(manifest, job.phase, ended, totals, num_examples=used, num_steps=steps)

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
        self._step_taken = rewritten(programs.step_taken)
        self.begin = jax.jit(self._begun)
        self.finish = jax.jit(self._finished)
        # The carry is given away: without that, every step would copy the parameters.
        self._step = jax.jit(self._step_taken, donate_argnums=0)
        self._loop = jax.jit(self._steps, donate_argnums=0)
        self._all = jax.jit(self._everything)
        self._stepwise = stepwise

    def is_stepwise(self, constant: Mapping[str, Any], chunk: Chunk) -> bool:
        """Return whether steps run one by one, which the first chunk shows."""
        if self._stepwise is None:
            step = jax.make_jaxpr(lambda *given: self._step_taken(self._begun(constant), *given))
            self._stepwise = has_primitive(step(constant, _at(chunk, 0)).jaxpr, "conv_general_dilated")
        return self._stepwise

    def train(self, carry: Mapping[str, Any], constant: Mapping[str, Any], chunk: Chunk, room: int) -> dict[str, Any]:
        """Take a chunk's steps; ``room`` is the longest chunk's number of them."""
        if self.is_stepwise(constant, chunk):
            for i in range(chunk.num_steps):
                carry = self._step(carry, constant, _at(chunk, i))
            return dict(carry)
        return dict(self._loop(carry, constant, _filled(chunk, room), np.int32(chunk.num_steps)))

    def whole(
        self, offered: Mapping[str, Any], constant: Mapping[str, Any], chunk: Chunk, room: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what ``finish`` gives, and the metrics, of a device whose steps are one chunk: in one call.

        Between two calls everything else on the core has gone cold: three in place of one cost a tenth of the 2NN.
        """
        outputs, sums = self._all(offered, constant, _filled(chunk, room), np.int32(chunk.num_steps))
        return outputs, sums

    def _everything(self, offered: Mapping[str, Any], constant: Mapping[str, Any], xs: Any, count: Any) -> Any:
        carry = self._steps(self._begun(offered), constant, xs, count)
        return self._finished(offered, carry), {k: v for k, v in carry.items() if k.startswith("metrics.")}

    def _begun(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the first step takes: the state, metric sums of zero, and the number of steps taken."""
        sums = {f"metrics.{k}": np.float32(0) for k in self._programs.metrics}
        # Copied, for the first step takes over what it gets, and other devices begin from the same parameters.
        begun = {**self._programs.begin(inputs), **sums, "step": np.uint32(0)}
        return {k: jnp.copy(v) for k, v in begun.items()}

    def _finished(self, offered: Mapping[str, Any], carry: Mapping[str, Any]) -> dict[str, Any]:
        state = {k: v for k, v in carry.items() if k.startswith("state.")}
        ends = {f"totals.{k}": carry[f"metrics.{k}"] for k in _TOTALS}
        return dict(self._programs.finish({**state, **offered, **ends}))

    def _steps(self, carry: Mapping[str, Any], constant: Mapping[str, Any], xs: Mapping[str, Any], count: Any) -> Any:
        def body(i: Any, carry: dict[str, Any]) -> dict[str, Any]:
            x = {k: jax.lax.dynamic_index_in_dim(v, i, keepdims=False) for k, v in xs.items()}
            return dict(self._step_taken(carry, constant, x))

        return jax.lax.fori_loop(0, count, body, carry)


@lru_cache(maxsize=32)
def _number(value: float) -> Any:
    """Return a float32 on the engine: a round's are the same for all its devices."""
    return jax.device_put(np.float32(value))


def _at(chunk: Chunk, i: int) -> dict[str, Any]:
    """Return what one step takes of a chunk."""
    return {**prefixed("batch", {k: v[i] for k, v in chunk.batch.items()}), "mask": chunk.mask[i]}


def _filled(chunk: Chunk, length: int) -> dict[str, Any]:
    """Return what a loop takes of a chunk, filled up so that chunks of every length share one compiled loop."""
    arrays = {**prefixed("batch", chunk.batch), "mask": chunk.mask}
    if chunk.num_steps == length:
        return arrays
    filled = {k: np.zeros((length, *v.shape[1:]), v.dtype) for k, v in arrays.items()}
    for name, array in arrays.items():
        filled[name][: len(array)] = array
    return filled
