"""From a task and an algorithm's local half to a plan: trace, lower, check against JAX, pack."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import onnx

from covey.plans.lowering.check import compare, count_roundings, loop, run_model, wobble
from covey.plans.lowering.export import lower, lower_scan
from covey.plans.lowering.programs import (
    Programs,
    initial_params,
    named_leaves,
    prefixed,
    random_field,
    specs,
    stripped,
)
from covey.plans.manifest import BASIS, TRAINED, AlgorithmRef, Manifest, Phase, SegmentPlan, needed_schema
from covey.plans.plan import pack_plan
from covey.plans.task import Local, PlanOptions, Task
from covey.types.errors import ParityError, PlanBuildError

__all__ = ["build_plan", "initial_params"]

Arrays = Mapping[str, Any]

_PARITY_STEPS = 3
_PARITY_LR_FACTOR = 0.1
"""Parity is checked over few steps with a small learning rate: training is chaotic, and two engines that round
differently part company soon, however right both are."""


@dataclass(frozen=True)
class _Signature:
    """The shapes of everything that a plan's graphs take, by manifest name."""

    programs: Programs
    options: PlanOptions

    def tree(self, what: str) -> dict[str, Any]:
        """Return the flat shapes of ``params``, ``shared`` or ``state``, with the prefix."""
        tree = {"params": self.programs.params, "shared": self.programs.shared, "state": self.programs.state}[what]
        return prefixed(what, {k: _struct(s.shape, s.dtype) for k, s in named_leaves(tree, what).items()})

    def carry(self) -> dict[str, Any]:
        """Return what a chunk carries."""
        metrics = {f"metrics.{k}": _struct((), np.float32) for k in self.programs.metrics}
        return {**self.tree("state"), **metrics, "step": _struct((), np.uint32)}

    def constant(self) -> dict[str, Any]:
        """Return what every step of a chunk reads."""
        hyper = {f"hyper.{h.name}": _struct((), np.float32) for h in self.programs.local.hyper}
        fixed = self.tree("params") if self.programs.local.graph == "gradient" else {}
        return {**fixed, **self.tree("shared"), **hyper, "key": _struct((2,), np.uint32)}

    def batch(self, batch_size: int) -> dict[str, Any]:
        """Return one masked batch."""
        return {**prefixed("batch", self.programs.batch_structs(batch_size)), "mask": _struct((batch_size,), np.bool_)}

    def finish(self) -> dict[str, Any]:
        """Return what ``finish`` takes."""
        totals = {f"totals.{k}": _struct((), np.float32) for k in ("examples", "loss", "weight")}
        return {**self.tree("state"), **self.tree("params"), **self.tree("shared"), **totals}

    def evaluate(self) -> dict[str, Any]:
        """Return what ``eval`` takes."""
        metrics = {f"metrics.{k}": _struct((), np.float32) for k in self.programs.metrics}
        return {**self.tree("params"), **metrics, **self.batch(self.options.eval_batch_size)}

    def predict(self) -> dict[str, Any]:
        """Return what ``predict`` takes: one example."""
        return {**self.tree("params"), **prefixed("input", self.programs.batch_structs(1, "input"))}


def build_plan(task: Task, local: Local, options: PlanOptions) -> bytes:
    """Return the archive of a plan, unsigned. The same arguments and versions always give the same bytes.

    Every graph is run beside JAX on random examples (a partly masked batch and a wholly masked one among them) and must
    agree within the tolerance of :mod:`covey.plans.lowering.check`; otherwise there is no plan.

    Raises:
        UnsupportedPrimitiveError: names the primitive and the author's line.
        ParityError: a graph that does not compute what JAX does.
        PlanBuildError: a task, a local half or options that do not fit together.
    """
    _check_options(options)
    programs = Programs(task, local)
    shapes = _Signature(programs, options)
    _check_segments(local, jax.eval_shape(programs.finish, shapes.finish()))
    graphs = {
        "begin": lower(programs.begin, {**shapes.tree("params"), **shapes.tree("shared")}, name="begin"),
        local.graph: lower_scan(
            programs.step,
            carry=shapes.carry(),
            shared=shapes.constant(),
            xs=shapes.batch(options.batch_size),
            out_names={n: f"next.{n}" for n in shapes.carry()},
            name=local.graph,
        ),
        "finish": lower(programs.finish, shapes.finish(), name="finish"),
        "eval": lower(programs.evaluate, shapes.evaluate(), name="eval"),
    }
    if task.predict is not None:
        graphs["predict"] = lower(programs.predict, shapes.predict(), name="predict")
    _check_parity(programs, shapes, graphs)
    return pack_plan(_manifest(programs, shapes), graphs)


def _manifest(programs: Programs, shapes: _Signature) -> Manifest:
    task, local, options = programs.task, programs.local, shapes.options
    made = jax.eval_shape(programs.finish, shapes.finish())
    shared = named_leaves(programs.shared, "shared")
    max_steps = options.epochs * -(-options.max_examples // options.batch_size)
    phase = Phase(
        name="train" if local.graph == "train" else "gradient",
        graph=local.graph,
        state=specs(named_leaves(programs.state, "state"), "state"),
        shared=specs({k: v for k, v in shared.items() if not _is_drawn(k)}, "shared"),
        segments=tuple(
            SegmentPlan(
                name=name,
                tensors=specs(stripped(name, made), f"segment {name!r}"),
                max_delta=bound,
                weighting=local.weighting[name],
                codec=options.compression,
            )
            for name, bound in sorted(local.max_delta.items())
        ),
        batch_size=options.batch_size,
        epochs=options.epochs,
        max_steps=options.max_steps or max_steps,
        chunk_steps=options.chunk_steps,
        trained_in_place=any(map(_is_drawn, shared)),
    )
    return Manifest(
        schema=needed_schema(options.privacy),
        task=task.name,
        algorithm=AlgorithmRef(name=local.algorithm, settings=dict(local.settings)),
        params=specs(named_leaves(programs.params, "params"), "params"),
        examples=task.examples,
        min_examples=options.min_examples,
        max_examples=options.max_examples,
        phases=(phase,),
        hyper=local.hyper,
        metrics=programs.metrics,
        eval_batch_size=options.eval_batch_size,
        graphs={},
        eligibility=options.eligibility,
        budget=options.budget,
        privacy=options.privacy,
        built_with={"jax": jax.__version__, "onnx": onnx.__version__},
    )


def _check_parity(programs: Programs, shapes: _Signature, graphs: Mapping[str, bytes]) -> None:
    """Run every graph beside JAX on the same random inputs."""
    task, local = programs.task, programs.local
    rng = np.random.Generator(np.random.Philox(key=0))
    params = prefixed("params", initial_params(task, seed=0))
    shared = {k: _plausible(k, v, rng) for k, v in shapes.tree("shared").items()}
    where = f"plan {task.name!r}"

    def check(name: str, fn: Any, inputs: Arrays) -> None:
        traced = {k: _struct(v.shape, v.dtype) for k, v in inputs.items()}
        compare(
            graphs[name], jax.jit(fn), [inputs], num_roundings=count_roundings(fn, traced), where=f"{where}: {name}"
        )

    check("begin", programs.begin, {**params, **shared})
    _check_steps(programs, shapes, graphs[local.graph], {**params, **shared}, rng, f"{where}: {local.graph}")
    state = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(s.dtype), shapes.tree("state"))
    totals = {f"totals.{k}": np.float32(v) for k, v in (("examples", 7), ("loss", 5), ("weight", 9))}
    check("finish", programs.finish, {**state, **params, **shared, **totals})
    metrics = {f"metrics.{k}": np.float32(i) for i, k in enumerate(programs.metrics)}
    batch = _random_batch(programs, (shapes.options.eval_batch_size,), rng)
    check("eval", programs.evaluate, {**params, **metrics, **batch})
    if task.predict is not None:
        check("predict", programs.predict, {**params, **prefixed("input", _fields(programs, (1,), rng, "input"))})


def _check_steps(
    programs: Programs, shapes: _Signature, model: bytes, broadcast: Arrays, rng: np.random.Generator, where: str
) -> None:
    carry, constant = shapes.carry(), shapes.constant()
    hyper = {h.name: h.default for h in programs.local.hyper}
    if "lr" in hyper:
        hyper["lr"] *= _PARITY_LR_FACTOR
    start = dict(jax.jit(programs.begin)(broadcast))
    inputs: dict[str, Any] = {k: np.asarray(start.get(k, np.zeros(s.shape, s.dtype))) for k, s in carry.items()}
    inputs |= {k: broadcast[k] for k in constant if k in broadcast}
    inputs |= {f"hyper.{k}": np.float32(v) for k, v in hyper.items()} | {"key": np.array([1, 2], np.uint32)}
    batches = _random_batch(programs, (_PARITY_STEPS, shapes.options.batch_size), rng)
    xs = shapes.batch(shapes.options.batch_size)
    rounds = count_roundings(programs.step, carry, constant, xs)
    names = {n: f"next.{n}" for n in carry}
    reference = loop(programs.step, carry=carry, shared=sorted(constant), xs=sorted(xs), out_names=names)
    sample = {**inputs, **batches}
    reals = [k for k, v in inputs.items() if k.startswith(("state.", "params.")) and v.dtype == np.float32]
    compare(
        model,
        reference,
        [sample],
        num_roundings=_PARITY_STEPS * rounds,
        previous={out: n for n, out in names.items()},
        num_steps=_PARITY_STEPS,
        slack=wobble(reference, sample, reals),
        where=where,
    )
    idle = run_model(model, {**inputs, **batches, "mask": np.zeros_like(batches["mask"])})
    for name, out in names.items():
        if idle[out].tobytes() != inputs[name].tobytes():
            raise ParityError(where, expected="steps with an empty mask to change nothing", got=f"another {name}")


def _random_batch(programs: Programs, lead: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
    """Return random examples; the last batch is partly masked."""
    mask = np.ones(lead, np.bool_)
    mask.reshape(-1, lead[-1])[-1, lead[-1] // 2 + 1 :] = False
    return {**prefixed("batch", _fields(programs, lead, rng)), "mask": mask}


def _fields(
    programs: Programs, lead: tuple[int, ...], rng: np.random.Generator, role: str | None = None
) -> dict[str, Any]:
    fields = [f for f in programs.task.examples.fields if role in (None, f.role)]
    return {f.name: random_field(f, (*lead, *f.shape), rng) for f in fields}


def _plausible(name: str, struct: Any, rng: np.random.Generator) -> Any:
    if struct.dtype == np.bool_:
        return rng.random(struct.shape) < 0.5
    values = rng.standard_normal(struct.shape)
    # Columns about as long as a basis has them: longer ones would make every step larger than any that is taken.
    return (values / np.sqrt(struct.shape[0]) if name == f"shared.{BASIS}" else values).astype(struct.dtype)


def _is_drawn(name: str) -> bool:
    """Return whether a broadcast tensor is a structured update's, which the device draws itself."""
    return name == BASIS or name.startswith(f"{TRAINED}/")


def _check_options(options: PlanOptions) -> None:
    sizes = {
        "batch_size": options.batch_size,
        "epochs": options.epochs,
        "chunk_steps": options.chunk_steps,
        "eval_batch_size": options.eval_batch_size,
        "min_examples": options.min_examples,
        "max_examples": options.max_examples,
    }
    for name, value in sizes.items():
        if value < 1:
            raise PlanBuildError(f"plan options: {name}", expected="at least 1", got=str(value))


def _check_segments(local: Local, made: Arrays) -> None:
    names = sorted({k.split(".")[0] for k in made})
    for what, given in (("max_delta", local.max_delta), ("weighting", local.weighting)):
        if sorted(given) != names:
            raise PlanBuildError(
                f"algorithm {local.algorithm!r}: {what}",
                expected=f"an entry for each segment that finish returns: {', '.join(names)}",
                got=", ".join(sorted(given)) or "none",
            )


def _struct(shape: tuple[int, ...], dtype: Any) -> Any:
    make: Any = jax.ShapeDtypeStruct  # its constructor is untyped
    return make(shape, np.dtype(dtype))
