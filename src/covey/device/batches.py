"""From a device's examples to the padded, masked batches that a plan's graphs take.

A step is one batch of B examples. Every epoch walks the examples in a fresh order; its last batch is filled up with
the epoch's first examples, which the mask hides, so that B is the same at every step. Steps are cut into chunks (one
call of the runtime each) without regard to where an epoch ends: the cut changes no result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey.plans.manifest import FieldSpec, Phase
from covey.types.errors import ExampleError, TooFewExamplesError
from covey.types.rng import generator
from covey.types.tensors import Array, Tensors

__all__ = ["Chunk", "checked_examples", "make_chunks", "num_distinct", "num_steps", "padded_batches"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some steps of training.

    Attributes:
        batch: for each field an array of shape ``[S, B, ...]``.
        mask: bool ``[S, B]``; false where an example is only padding.
    """

    batch: dict[str, Array]
    mask: NDArray[np.bool_]

    @property
    def num_steps(self) -> int:
        """S, the number of steps."""
        return len(self.mask)


def num_steps(num_examples: int, phase: Phase) -> int:
    """Return how many steps a device with ``num_examples`` takes: all its epochs, at most ``phase.max_steps``."""
    return min(phase.max_steps, _passes(phase) * -(-num_examples // phase.batch_size))


def num_distinct(num_examples: int, phase: Phase) -> int:
    """Return how many different examples those steps see: fewer than there are if ``max_steps`` ends the first pass."""
    return min(num_examples, num_steps(num_examples, phase) * phase.batch_size)


def make_chunks(examples: Tensors, phase: Phase, *, seed: bytes) -> Iterator[Chunk]:
    """Yield a device's steps in chunks of at most ``phase.chunk_steps``.

    Training shuffles anew each epoch, with the stream ``(seed, "shuffle", epoch)``; a gradient phase makes one pass in
    the given order. Only the chunk at hand is held in memory.

    Args:
        examples: the fields, with the same first dimension, at least 1 (see :func:`checked_examples`).
        phase: batch size, epochs, most steps, most steps in a chunk.
        seed: 32 bytes; on a device from the operating system.
    """
    count = len(next(iter(examples.values())))
    pending: list[tuple[NDArray[np.int64], NDArray[np.bool_]]] = []
    num_pending, left = 0, num_steps(count, phase)
    for epoch in range(_passes(phase)):
        order = np.arange(count) if phase.graph == "gradient" else generator(seed, "shuffle", epoch).permutation(count)
        rows, mask = _padded(order, phase.batch_size)
        rows, mask = rows[:left], mask[:left]
        left -= len(rows)
        while num_pending + len(rows) >= phase.chunk_steps:
            take = phase.chunk_steps - num_pending
            yield _gather(examples, [*pending, (rows[:take], mask[:take])])
            rows, mask = rows[take:], mask[take:]
            pending, num_pending = [], 0
        if len(rows):
            pending.append((rows, mask))
            num_pending += len(rows)
        if not left:
            break
    if pending:
        yield _gather(examples, pending)


def padded_batches(examples: Tensors, batch_size: int) -> Iterator[Chunk]:
    """Yield every example once, in order, one batch at a time (S = 1), the last one padded and masked."""
    count = len(next(iter(examples.values())))
    for start in range(0, count, batch_size):
        rows, mask = _padded(np.arange(start, min(start + batch_size, count)), batch_size)
        yield _gather(examples, [(rows, mask)])


def checked_examples(
    examples: Tensors, fields: Sequence[FieldSpec], *, at_least: int = 1, at_most: int | None = None
) -> dict[str, Array]:
    """Return the named fields of the first ``at_most`` examples: views where the layout allows.

    Raises:
        ExampleError: a field that is missing or of another shape or dtype, fields of different lengths, or an integer
            outside the range that the plan declares.
        TooFewExamplesError: none at all, or fewer than ``at_least``.
    """
    out = {f.name: _checked_field(examples, f)[:at_most] for f in fields}
    counts = {name: len(values) for name, values in out.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{k}: {v}" for k, v in counts.items())
        raise ExampleError("examples", expected="as many values of every field", got=listed)
    count = next(iter(counts.values()))
    if count < at_least:
        raise TooFewExamplesError(
            "examples",
            expected=f"at least {at_least}",
            got=str(count) if count else "none",
            hint="the device takes part again once it has gathered more",
        )
    for f in fields:
        _check_range(out[f.name], f)
    return out


def _passes(phase: Phase) -> int:
    return 1 if phase.graph == "gradient" else phase.epochs


def _padded(order: NDArray[np.int64], batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return row numbers and mask, both ``[steps, B]``; the end is filled up with the order's beginning, repeated."""
    steps = -(-len(order) // batch_size)
    mask = (np.arange(steps * batch_size) < len(order)).reshape(steps, batch_size)
    return np.resize(order, steps * batch_size).reshape(steps, batch_size), mask


def _gather(examples: Tensors, parts: list[tuple[NDArray[np.int64], NDArray[np.bool_]]]) -> Chunk:
    rows = parts[0][0] if len(parts) == 1 else np.concatenate([r for r, _ in parts])
    mask = parts[0][1] if len(parts) == 1 else np.concatenate([m for _, m in parts])
    batch = {name: np.take(values, rows, axis=0) for name, values in examples.items()}
    return Chunk(batch, np.ascontiguousarray(mask))


def _checked_field(examples: Tensors, spec: FieldSpec) -> Array:
    where, wanted = f"examples: field {spec.name!r}", f"{spec.dtype} {_shape(('n', *spec.shape))}"
    if spec.name not in examples:
        raise ExampleError(where, expected=wanted, got="no such field")
    values = np.asarray(examples[spec.name])
    if values.ndim != 1 + len(spec.shape) or values.shape[1:] != spec.shape or values.dtype != np.dtype(spec.dtype):
        raise ExampleError(where, expected=wanted, got=f"{values.dtype.name} {_shape(values.shape)}")
    return values


def _check_range(values: Array, spec: FieldSpec) -> None:
    """Refuse what would index past the end of a table inside the graph."""
    if spec.num_values is None or not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= spec.num_values:
        raise ExampleError(
            f"examples: field {spec.name!r}", expected=f"integers from 0 to {spec.num_values - 1}", got="one outside"
        )


def _shape(dims: tuple[object, ...]) -> str:
    return f"[{', '.join(map(str, dims))}]"
