"""Parity: a model and JAX must agree before the model may ship.

Both engines compute in float32 but sum in different orders, so they agree up to rounding. How far apart may they be?
Rounding errors of one sum of n terms grow like ``sqrt(n) u`` with high probability (u = 2^-24, half of float32's eps;
Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5), 2019, theorem
2.4), and errors of consecutive operations add in the same manner. :func:`count_roundings` bounds the number N of
roundings on the longest chain through a program, and the tolerance is

    ``tolerance(N) = 32 eps sqrt(N)``

relative to the largest magnitude of the tensor. The factor 32 is the theorem's λ (4 makes a violation improbable even
over all elements of a model) times 4 for intermediate values larger than the result they cancel to, times 2 for two
engines. For the models here that is 1e-4 to 2e-3; a wrong gradient is off by about 1.

What is compared is the *update*, ``new - old``, where an output has an input that it continues: an error in a gradient
would vanish beside the parameter. The parameter's own rounding enters as a floor, ``eps max|old|`` for each step.

Training amplifies differences from step to step, and a ReLU or a maximum may tip over in one engine only. Therefore few
steps, a small learning rate and smooth random data. Some programs are ill-conditioned all the same: Adam divides a
gradient by its own magnitude, so that the rounding of a tiny one becomes as large as any update. How much, JAX can
tell: :func:`wobble` runs a program on inputs that differ by one rounding; what moves then may differ between engines,
up to a hundredth of the tensor's scale: a wrong gradient never hides there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import onnxruntime as ort

from covey.types.errors import ParityError

__all__ = ["Agreement", "compare", "count_roundings", "loop", "run_model", "tolerance", "wobble"]

EPS = float(np.finfo(np.float32).eps)
Arrays = Mapping[str, Any]

_SLACK_FACTOR = 32.0
"""A tensor's wobble is that of one rounding of the inputs; the roundings inside come on top, as in the tolerance."""
_MAX_SLACK = 0.01


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well one tensor agrees, worst over the samples.

    Attributes:
        name: the output.
        max_abs: largest absolute difference.
        max_rel: the same relative to the tensor's largest magnitude (that of its update, where it continues an input).
        allowed: the largest absolute difference that would have passed.
    """

    name: str
    max_abs: float
    max_rel: float
    allowed: float


def tolerance(num_roundings: int) -> float:
    """Return the relative tolerance for a chain of ``num_roundings`` roundings; see the module's docstring."""
    return 32 * EPS * math.sqrt(max(num_roundings, 1))


def count_roundings(fn: Callable[..., Any], *arguments: Any) -> int:
    """Bound the roundings on the longest chain through ``fn``: one for each operation, n for a sum of n terms.

    Args:
        fn: traceable by JAX.
        arguments: arrays, or trees of shapes and dtypes.
    """
    return _chain(jax.make_jaxpr(fn)(*arguments).jaxpr)


def loop(
    step: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Arrays],
    *,
    carry: Mapping[str, Any],
    shared: Sequence[str],
    xs: Sequence[str],
    out_names: Mapping[str, str],
) -> Callable[[Arrays], dict[str, Any]]:
    """Return what :func:`~covey.plans.lowering.export.lower_scan` makes a model of, as a function of its inputs.

    The step is compiled and the loop is Python's: XLA runs convolutions an order of magnitude slower inside a scan.
    """
    compiled = jax.jit(step)

    def run(inputs: Arrays) -> dict[str, Any]:
        state = {n: inputs[n] if isinstance(c, jax.ShapeDtypeStruct) else np.asarray(c) for n, c in carry.items()}
        common = {n: inputs[n] for n in shared}
        for i in range(len(inputs[xs[0]])):
            state = dict(compiled(state, common, {n: inputs[n][i] for n in xs}))
        return {out: state[n] for n, out in out_names.items()}

    return run


def wobble(fn: Callable[[Any], Arrays], sample: Arrays, names: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Return how far each output of ``fn`` moves when the inputs ``names`` are off by up to one rounding.

    The largest absolute change over the tensor; zero for outputs that are not floating point.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    moved = dict(sample)
    for name in names:
        value = np.asarray(sample[name])
        moved[name] = (value * (1 + EPS * rng.uniform(-1, 1, value.shape))).astype(value.dtype)
    before, after = fn(dict(sample)), fn(moved)
    out = {}
    for name, value in before.items():
        a, b = np.asarray(value), np.asarray(after[name])
        out[name] = float(np.max(np.abs(a - b), initial=0.0)) if np.issubdtype(a.dtype, np.floating) else 0.0
    return out


def run_model(model: bytes, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Run a model on onnxruntime with one thread."""
    return _runner(model)(inputs)


def compare(
    model: bytes,
    fn: Callable[[Any], Arrays],
    samples: Sequence[Arrays],
    *,
    num_roundings: int,
    previous: Mapping[str, str] | None = None,
    num_steps: int = 1,
    slack: Mapping[str, float] | None = None,
    where: str = "parity",
) -> list[Agreement]:
    """Run a model on onnxruntime and ``fn`` on JAX, and compare every output.

    Integers and booleans must be equal; so must the places of infinities and NaNs.

    Args:
        model: a serialized model.
        fn: the function that it was made of, on a dict of inputs, compiled by ``jax.jit``; for a loop, what
            :func:`loop` returns.
        samples: inputs to compare on.
        num_roundings: for one call of ``fn``, all its steps included.
        previous: for an output that continues an input, that input's name.
        num_steps: how often the continued inputs were updated.
        slack: for an output, its :func:`wobble`; counts as far as a hundredth of the tensor's scale.
        where: what the error names, such as the graph.

    Raises:
        ParityError: names the tensor, the largest differences and what was allowed.
    """
    run = _runner(model)
    worst: dict[str, Agreement] = {}
    for sample in samples:
        expected, got = fn(dict(sample)), run(sample)
        if set(expected) != set(got):
            raise ParityError(where, expected=f"outputs {', '.join(sorted(expected))}", got=", ".join(sorted(got)))
        for name in sorted(got):
            base = (previous or {}).get(name)
            old = None if base is None else np.asarray(sample[base])
            extra = _SLACK_FACTOR * (slack or {}).get(name, 0.0)
            found = _agreement(
                f"{where}: {name}", name, np.asarray(expected[name]), got[name], old, num_roundings, num_steps, extra
            )
            if name not in worst or found.max_rel > worst[name].max_rel:
                worst[name] = found
    return [worst[n] for n in sorted(worst)]


def _agreement(
    where: str,
    name: str,
    expected: np.ndarray[Any, Any],
    got: np.ndarray[Any, Any],
    old: np.ndarray[Any, Any] | None,
    num_roundings: int,
    num_steps: int,
    slack: float,
) -> Agreement:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise ParityError(
            where, expected=f"{expected.dtype}{list(expected.shape)}", got=f"{got.dtype}{list(got.shape)}"
        )
    if not np.issubdtype(got.dtype, np.floating):
        wrong = int(np.sum(expected != got))
        if wrong:
            raise ParityError(where, expected="equal integers", got=f"{wrong} of {got.size} differ", hint=_HINT)
        return Agreement(name, 0.0, 0.0, 0.0)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        raise ParityError(where, expected="infinities and NaNs in the same places", got="others", hint=_HINT)
    e, g = expected[finite].astype(np.float64), got[finite].astype(np.float64)
    before = np.zeros_like(e) if old is None else old.astype(np.float64)[finite]
    scale = float(np.max(np.abs(e - before), initial=0.0))
    floor = EPS * num_steps * float(np.max(np.abs(before), initial=0.0)) + float(np.finfo(np.float32).tiny)
    allowed = tolerance(num_roundings) * scale + floor + min(slack, _MAX_SLACK * scale)
    difference = float(np.max(np.abs(g - e), initial=0.0)) if np.all(np.isfinite(g)) else math.inf
    relative = difference / scale if scale else (0.0 if difference <= floor else math.inf)
    if difference > allowed:
        raise ParityError(
            where,
            expected=f"a difference of at most {allowed:.3g} (of which {floor:.1e} is rounding of the old value)",
            got=f"absolute {difference:.3g}, relative {relative:.3g}",
            hint=_HINT,
        )
    return Agreement(name, difference, relative, allowed)


_HINT = (
    "the graph does not compute what JAX does, so it must not ship; the model's newest operation is the first suspect"
)


def _runner(model: bytes) -> Callable[[Arrays], dict[str, np.ndarray[Any, Any]]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]

    def run(sample: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(outputs, session.run(outputs, {n: np.asarray(sample[n]) for n in inputs}), strict=True))

    return run


def _chain(jaxpr: Any) -> int:
    """Return the longest chain's number of roundings, by the depth at which each value becomes known."""
    depth: dict[Any, int] = {}
    deepest = 0
    for eqn in jaxpr.eqns:
        before = max((depth.get(v, 0) for v in eqn.invars if not hasattr(v, "val")), default=0)
        after = before + _roundings(eqn)
        deepest = max(deepest, after)
        for out in eqn.outvars:
            depth[out] = after
    return deepest


def _roundings(eqn: Any) -> int:
    """Return the roundings that one equation adds to a chain."""
    p, name = eqn.params, eqn.primitive.name
    shape = tuple(eqn.invars[0].aval.shape) if eqn.invars else ()
    if name == "dot_general":
        return math.prod(shape[d] for d in p["dimension_numbers"][0][0])
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        return int(math.prod(kernel)) // max(1, int(kernel[p["dimension_numbers"].rhs_spec[0]]))
    if name in ("reduce_sum", "reduce_prod"):
        return math.prod(shape[d] for d in p["axes"])
    if name.startswith("cum"):
        return int(shape[p["axis"]])
    if name == "reduce_window_sum":
        return math.prod(p["window_dimensions"])
    if name.startswith("scatter"):
        return max(1, int(math.prod(eqn.invars[2].aval.shape)) // max(1, int(math.prod(shape)))) + 8
    inner = [_chain(getattr(j, "jaxpr", j)) for j in _bodies(p)]
    return max(inner) * int(p["length"] if name == "scan" else 1) if inner else 1


def _bodies(params: Mapping[str, Any]) -> list[Any]:
    """Return the programs inside an equation."""
    found = [params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params]
    return found + list(params.get("branches", ()))
