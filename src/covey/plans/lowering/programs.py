"""A task and an algorithm's local half, as flat functions of named arrays: what every engine executes.

The graphs of a plan are lowered from these functions, and the simulation's JAX trainer compiles the very same ones.
Names are those of :mod:`covey.plans.manifest`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covey.plans.manifest import BASE_METRICS, FieldSpec
from covey.plans.task import ANCHOR, KEPT, Local, Out, Task
from covey.types.errors import PlanBuildError
from covey.types.tensors import DTYPES, TensorSpec

__all__ = ["Programs", "initial_params", "named_leaves", "prefixed", "random_field", "specs", "stripped"]

Arrays = Mapping[str, Any]
Struct = jax.ShapeDtypeStruct


def prefixed(prefix: str, arrays: Arrays) -> dict[str, Any]:
    """Return ``arrays`` with ``prefix.`` before each name."""
    return {f"{prefix}.{k}": v for k, v in arrays.items()}


def stripped(prefix: str, arrays: Arrays) -> dict[str, Any]:
    """Return those of ``arrays`` whose name starts with ``prefix.``, without it. The inverse of :func:`prefixed`."""
    start = f"{prefix}."
    return {k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)}


def named_leaves(tree: Any, where: str) -> dict[str, Any]:
    """Return the leaves of a pytree by ``/``-joined path.

    Raises:
        PlanBuildError: a name that is empty, holds ``/``, or comes twice.
    """
    out: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [_part(p) for p in path] or ["value"]
        name = "/".join(parts)
        if any(not p or "/" in p for p in parts) or name in out:
            raise PlanBuildError(where, expected="distinct names without '/'", got=repr(name))
        out[name] = leaf
    return out


def initial_params(task: Task, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return the task's initial parameters, flat and float32, drawn from ``seed``.

    Raises:
        PlanBuildError: a parameter that is not float32.
    """
    flat = named_leaves(task.init(jax.random.key(seed)), f"{task.name}: init")
    return {k: np.asarray(flat[k]) for k in sorted(_checked_params(flat, task.name))}


@dataclass(frozen=True)
class Programs:
    """The flat functions of one task under one local half, at one batch size.

    Attributes:
        task: the model and its loss.
        local: the device's half of the algorithm.
    """

    task: Task
    local: Local

    @cached_property
    def params(self) -> Any:
        """The tree of the parameters' shapes."""
        tree = jax.eval_shape(self.task.init, jax.eval_shape(lambda: jax.random.key(0)))
        _checked_params(named_leaves(tree, f"{self.task.name}: init"), self.task.name)
        return tree

    @cached_property
    def shared(self) -> Any:
        """The tree of the shapes of what is broadcast besides the parameters, and of what the device keeps."""
        shared = {} if self.local.shared is None else jax.eval_shape(self.local.shared, self.params)
        return shared if self.local.kept is None else {**shared, KEPT: jax.eval_shape(self.local.kept, self.params)}

    @cached_property
    def state(self) -> Any:
        """The tree of the shapes that a loop carries."""
        return jax.eval_shape(self.local.init, self.params, self.shared)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metric sums: the base ones, then the task's own, sorted."""
        own = jax.eval_shape(
            lambda p, b: dict(self._loss(p, b, jax.random.key(0)).metrics), self.params, self.batch_structs(2)
        )
        return (*BASE_METRICS, *sorted(own))

    def batch_structs(self, batch_size: int, role: str | None = None) -> dict[str, Struct]:
        """Return the shapes of a batch's fields; ``role`` limits them to ``input`` or ``label``."""
        fields = [f for f in self.task.examples.fields if role in (None, f.role)]
        return {f.name: _struct((batch_size, *f.shape), f.dtype) for f in fields}

    # The functions: each takes and returns a flat dict.

    def begin(self, inputs: Arrays) -> dict[str, Any]:
        """``params.*``, ``shared.*`` -> ``state.*``."""
        state = self.local.init(self._tree("params", inputs), self._tree("shared", inputs))
        return prefixed("state", named_leaves(state, "state"))

    def step(self, carry: Arrays, shared: Arrays, x: Arrays) -> dict[str, Any]:
        """Take one masked step; a mask of nothing but false returns ``carry`` bit for bit."""
        names = sorted(carry)

        def taken(values: Any) -> Any:
            after = self.step_taken(dict(zip(names, values, strict=True)), shared, x)
            return tuple(after[n] for n in names)

        before = tuple(carry[n] for n in names)
        after = jax.lax.cond(jnp.any(x["mask"]), taken, lambda values: values, before)
        return dict(zip(names, after, strict=True))

    def step_taken(self, carry: Arrays, shared: Arrays, x: Arrays) -> dict[str, Any]:
        """Take one masked step, as :meth:`step` does where the mask is true somewhere."""
        state, extra = self._tree("state", carry), self._tree("shared", shared)
        mean = self.local.graph == "train"
        params = state["params"] if mean else self._tree("params", shared)
        if self.local.anchored:
            extra = {**extra, ANCHOR: self._tree("params", shared)}
        key = jax.random.fold_in(jax.random.wrap_key_data(shared["key"]), carry["step"])

        def objective(p: Any) -> Any:
            sums = self._sums(self._loss(p, stripped("batch", x), key), x["mask"])
            # At least 1: a batch in which nothing is predicted must not divide by zero.
            return (sums["loss"] / jnp.maximum(sums["weight"], 1.0) if mean else sums["loss"]), sums

        grad, sums = jax.grad(objective, has_aux=True)(params)
        state = self.local.step(state, extra, grad, stripped("hyper", shared))
        out = prefixed("state", named_leaves(state, "state"))
        out |= {f"metrics.{k}": carry[f"metrics.{k}"] + sums[k] for k in self.metrics}
        return {**out, "step": carry["step"] + np.uint32(1)}

    def finish(self, inputs: Arrays) -> dict[str, Any]:
        """``state.*``, ``params.*``, ``shared.*``, ``totals.*`` -> ``<segment>.*``."""
        segments = self.local.finish(
            self._tree("state", inputs),
            self._tree("params", inputs),
            self._tree("shared", inputs),
            stripped("totals", inputs),
        )
        out: dict[str, Any] = {}
        for name, tree in segments.items():
            out |= prefixed(name, named_leaves(tree, f"segment {name!r}"))
        return out

    def evaluate(self, inputs: Arrays) -> dict[str, Any]:
        """``params.*``, ``metrics.*``, ``batch.*``, ``mask`` -> ``next.metrics.*``. Nothing is random here: no key."""
        params, batch = self._tree("params", inputs), stripped("batch", inputs)
        try:
            out = self._loss(params, batch, None)
        except (TypeError, ValueError, AttributeError) as e:
            # The same loss has just been traced with a key, so it is the missing key that it cannot do without.
            raise PlanBuildError(
                f"{self.task.name}: loss",
                expected="a loss that can be evaluated, with None for a key",
                got=f"{type(e).__name__}: {e}",
                hint="leave dropout and augmentation out where key is None",
            ) from e
        sums = self._sums(out, inputs["mask"])
        return prefixed("next.metrics", {k: inputs[f"metrics.{k}"] + sums[k] for k in self.metrics})

    def predict(self, inputs: Arrays) -> dict[str, Any]:
        """``params.*``, ``input.*`` -> ``output.*``."""
        assert self.task.predict is not None, "a task without predict has no predict graph"
        out: Any = self.task.predict(self._tree("params", inputs), stripped("input", inputs))
        if not isinstance(out, Mapping):
            raise PlanBuildError(
                f"{self.task.name}: predict", expected="a dict of named arrays", got=type(out).__name__
            )
        return prefixed("output", out)

    def _loss(self, params: Any, batch: Arrays, key: Any) -> Out:
        out = self.task.loss(params, batch, key)
        if not isinstance(out, Out):
            raise PlanBuildError(
                f"{self.task.name}: loss", expected="covey.plans.task.Out", got=type(out).__name__, hint=_LOSS_HINT
            )
        shape = next(iter(batch.values())).shape[:1]
        for name, value in {"loss": out.loss, "weight": out.weight, **out.metrics}.items():
            if jnp.shape(value) != shape:
                raise PlanBuildError(
                    f"{self.task.name}: loss: {name}",
                    expected=f"one number for each example, shape {list(shape)}",
                    got=f"shape {list(jnp.shape(value))}",
                    hint=_LOSS_HINT,
                )
        if odd := sorted(set(out.metrics) & set(BASE_METRICS)):
            raise PlanBuildError(f"{self.task.name}: loss", expected="metrics with names of their own", got=odd[0])
        return out

    def _sums(self, out: Out, mask: Any) -> dict[str, Any]:
        def total(value: Any) -> Any:
            return jnp.sum(jnp.where(mask, jnp.asarray(value, jnp.float32), 0.0))

        sums = {"examples": total(jnp.ones(mask.shape)), "loss": total(out.loss), "weight": total(out.weight)}
        return sums | {k: total(v) for k, v in out.metrics.items()}

    def _tree(self, what: str, arrays: Arrays) -> Any:
        tree = {"params": self.params, "shared": self.shared, "state": self.state}[what]
        flat = stripped(what, arrays)
        return jax.tree.unflatten(jax.tree.structure(tree), [flat[k] for k in named_leaves(tree, what)])


_LOSS_HINT = (
    "return Out(loss, weight, metrics) with one number for each example: masks, sums and means are Covey's part"
)


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise AssertionError(f"an unknown kind of path entry: {entry!r}")


def _struct(shape: tuple[int, ...], dtype: Any) -> Struct:
    make: Any = jax.ShapeDtypeStruct  # its constructor is untyped
    result: Struct = make(shape, np.dtype(dtype))
    return result


def _checked_params(flat: Arrays, where: str) -> Arrays:
    for name, leaf in flat.items():
        if leaf.dtype != np.float32:
            raise PlanBuildError(
                f"{where}: init: {name}",
                expected="a float32 parameter",
                got=str(leaf.dtype),
                hint="counters and tables that are not trained belong in the examples, or in constants of the model",
            )
    if not flat:
        raise PlanBuildError(f"{where}: init", expected="at least one parameter", got="none")
    return flat


def specs(flat: Arrays, where: str) -> tuple[TensorSpec, ...]:
    """Return the specs of named arrays in canonical order.

    Raises:
        PlanBuildError: a dtype that cannot travel.
    """
    for name, leaf in flat.items():
        if str(leaf.dtype) not in DTYPES:
            raise PlanBuildError(f"{where}: {name}", expected=f"one of {', '.join(DTYPES)}", got=str(leaf.dtype))
    return tuple(sorted(TensorSpec(k, tuple(map(int, v.shape)), str(v.dtype)) for k, v in flat.items()))


def random_field(field: FieldSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return plausible values for a field: integers within its range, reals in [0, 1), booleans."""
    if field.dtype == "bool":
        return rng.random(shape) < 0.5
    if field.dtype.startswith("float"):
        return rng.random(shape).astype(field.dtype)
    return rng.integers(0, field.num_values or 2, shape).astype(field.dtype)
