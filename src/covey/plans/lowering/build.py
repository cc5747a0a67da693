"""From a task and an algorithm's local half to a plan: trace, lower, check against JAX, pack."""

from collections.abc import Mapping, Sequence
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
from covey.plans.manifest import BASIS, KEPT, TRAINED, AlgorithmRef, Manifest, Phase, SegmentPlan, needed_schema
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
    """The shapes of everything that a phase's graphs take, by manifest name."""

    programs: Programs
    options: PlanOptions

    @property
    def batch_size(self) -> int:
        """Examples in one step of the phase."""
        own = self.options.gradient_batch_size if self.programs.local.graph == "gradient" else None
        return own or self.options.batch_size

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
        local = self.programs.local
        fixed = self.tree("params") if local.graph == "gradient" or local.anchored else {}
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


def build_plan(task: Task, local: Local | Sequence[Local], options: PlanOptions) -> bytes:
    """Return the archive of a plan, unsigned. The same arguments and versions always give the same bytes.

    Every graph is run beside JAX on random examples (a partly masked batch and a wholly masked one among them) and must
    agree within the tolerance of :mod:`covey.plans.lowering.check`; otherwise there is no plan.

    Args:
        task: the model and its loss.
        local: the algorithm's device half: of its one phase, or of each of them in order.
        options: what the plan fixes besides.

    Raises:
        UnsupportedPrimitiveError: names the primitive and the author's line.
        ParityError: a graph that does not compute what JAX does.
        PlanBuildError: a task, a local half or options that do not fit together.
    """
    _check_options(options)
    locals_ = (local,) if isinstance(local, Local) else tuple(local)
    if not locals_ or len({x.graph for x in locals_}) < len(locals_):
        raise PlanBuildError(
            "algorithm", expected="phases that train and that gather gradients, one each", got="others"
        )
    signatures = [_Signature(Programs(task, x), options) for x in locals_]
    graphs: dict[str, bytes] = {}
    for index, shapes in enumerate(signatures):
        graphs |= _phase_graphs(shapes, index)
    first = signatures[0]
    graphs["eval"] = lower(first.programs.evaluate, first.evaluate(), name="eval")
    if task.predict is not None:
        graphs["predict"] = lower(first.programs.predict, first.predict(), name="predict")
    for index, shapes in enumerate(signatures):
        _check_parity(shapes, graphs, index)
    _check_evaluation(first, graphs)
    return pack_plan(_manifest(signatures), graphs)


def _graph_name(kind: str, index: int) -> str:
    return f"{kind}-{index}" if index else kind


def _phase_graphs(shapes: _Signature, index: int) -> dict[str, bytes]:
    programs, local = shapes.programs, shapes.programs.local
    _check_segments(local, jax.eval_shape(programs.finish, shapes.finish()))
    begin, finish = _graph_name("begin", index), _graph_name("finish", index)
    return {
        begin: lower(programs.begin, {**shapes.tree("params"), **shapes.tree("shared")}, name=begin),
        local.graph: lower_scan(
            programs.step,
            carry=shapes.carry(),
            shared=shapes.constant(),
            xs=shapes.batch(shapes.batch_size),
            out_names={n: f"next.{n}" for n in shapes.carry()},
            name=local.graph,
        ),
        finish: lower(programs.finish, shapes.finish(), name=finish),
    }


def _manifest(signatures: Sequence[_Signature]) -> Manifest:
    first, options = signatures[0].programs, signatures[0].options
    task, local = first.task, first.local
    phases = tuple(_phase(shapes, index) for index, shapes in enumerate(signatures))
    hyper = {h.name: h for s in signatures for h in s.programs.local.hyper}
    return Manifest(
        schema=needed_schema(options.privacy, phases, options.download),
        task=task.name,
        algorithm=AlgorithmRef(name=local.algorithm, settings=dict(local.settings)),
        params=specs(named_leaves(first.params, "params"), "params"),
        examples=task.examples,
        min_examples=options.min_examples,
        max_examples=options.max_examples,
        phases=phases,
        hyper=tuple(hyper.values()),
        metrics=first.metrics,
        eval_batch_size=options.eval_batch_size,
        graphs={},
        eligibility=options.eligibility,
        budget=options.budget,
        privacy=options.privacy,
        download=options.download,
        built_with={"jax": jax.__version__, "onnx": onnx.__version__},
    )


def _phase(shapes: _Signature, index: int) -> Phase:
    programs, options = shapes.programs, shapes.options
    local = programs.local
    made = jax.eval_shape(programs.finish, shapes.finish())
    shared = named_leaves(programs.shared, "shared")
    gradient = local.graph == "gradient"
    epochs = 1 if gradient else options.epochs
    return Phase(
        name=local.graph,
        graph=local.graph,
        state=specs(named_leaves(programs.state, "state"), "state"),
        shared=specs({k: v for k, v in shared.items() if not (_is_drawn(k) or k.startswith(f"{KEPT}/"))}, "shared"),
        segments=tuple(
            SegmentPlan(
                name=name,
                tensors=specs(stripped(name, made), f"segment {name!r}"),
                max_delta=bound,
                weighting=local.weighting[name],
                codec="float32" if name in local.exact else options.compression,
            )
            for name, bound in sorted(local.max_delta.items())
        ),
        batch_size=shapes.batch_size,
        epochs=epochs,
        max_steps=(None if gradient else options.max_steps) or epochs * -(-options.max_examples // shapes.batch_size),
        chunk_steps=options.chunk_steps,
        trained_in_place=any(map(_is_drawn, shared)),
        kept=specs(stripped(KEPT, made), KEPT),
        begin=_graph_name("begin", index),
        finish=_graph_name("finish", index),
    )


def _check_parity(shapes: _Signature, graphs: Mapping[str, bytes], index: int) -> None:
    """Run a phase's graphs beside JAX on the same random inputs."""
    programs = shapes.programs
    rng = np.random.Generator(np.random.Philox(key=0))
    params = prefixed("params", initial_params(programs.task, seed=0))
    shared = {k: _plausible(k, v, rng) for k, v in shapes.tree("shared").items()}
    loop_name, where = programs.local.graph, f"plan {programs.task.name!r}"
    _check_graph(_graph_name("begin", index), programs.begin, {**params, **shared}, graphs, where)
    _check_steps(programs, shapes, graphs[loop_name], {**params, **shared}, rng, f"{where}: {loop_name}")
    state = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(s.dtype), shapes.tree("state"))
    totals = {f"totals.{k}": np.float32(v) for k, v in (("examples", 7), ("loss", 5), ("weight", 9))}
    inputs = {**state, **params, **shared, **totals}
    _check_graph(_graph_name("finish", index), programs.finish, inputs, graphs, where)


def _check_evaluation(shapes: _Signature, graphs: Mapping[str, bytes]) -> None:
    programs, rng = shapes.programs, np.random.Generator(np.random.Philox(key=1))
    params, where = prefixed("params", initial_params(programs.task, seed=0)), f"plan {programs.task.name!r}"
    metrics = {f"metrics.{k}": np.float32(i) for i, k in enumerate(programs.metrics)}
    batch = _random_batch(programs, (shapes.options.eval_batch_size,), rng)
    _check_graph("eval", programs.evaluate, {**params, **metrics, **batch}, graphs, where)
    if programs.task.predict is not None:
        one = prefixed("input", _fields(programs, (1,), rng, "input"))
        _check_graph("predict", programs.predict, {**params, **one}, graphs, where)


def _check_graph(name: str, fn: Any, inputs: Arrays, graphs: Mapping[str, bytes], where: str) -> None:
    traced = {k: _struct(v.shape, v.dtype) for k, v in inputs.items()}
    rounds = count_roundings(fn, traced)
    compare(graphs[name], jax.jit(fn), [inputs], num_roundings=rounds, where=f"{where}: {name}")


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
    batches = _random_batch(programs, (_PARITY_STEPS, shapes.batch_size), rng)
    xs = shapes.batch(shapes.batch_size)
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
    if local.kept is not None and KEPT in names:
        names.remove(KEPT)
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
