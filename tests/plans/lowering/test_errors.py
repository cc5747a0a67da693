"""What cannot be lowered is refused with the primitive and the author's line; what an author gets wrong, by name."""

import inspect
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from covey.algorithms.local.fedavg import fedavg_local
from covey.plans.lowering import lower, lower_scan
from covey.plans.lowering.build import build_plan
from covey.plans.task import Out
from covey.types.errors import PlanBuildError, UnsupportedPrimitiveError

from .agreement import inputs_of, named, reals, structs_of, whole
from .tasks import MLP, OPTIONS

X = reals(4, 4)


def refused(fn, *arrays, kind=UnsupportedPrimitiveError):
    with pytest.raises(kind) as caught:
        lower(named(fn), structs_of(inputs_of(arrays)), name="test")
    return caught.value


def line_of(fn, text):
    """Return ``file:line`` of the first line of ``fn`` that holds ``text``."""
    lines, first = inspect.getsourcelines(fn)
    return f"{Path(__file__).name}:{first + next(i for i, line in enumerate(lines) if text in line)}"


def special(x):
    y = jnp.sin(x)
    z = lax.digamma(y)  # here
    return z * 2


def in_a_loop(x):
    return lax.scan(lambda c, r: (c + lax.lgamma(r), None), x[0], x)[0]  # here


def in_a_gradient(x):
    return jax.grad(lambda v: jnp.sum(special(v)))(x)


def in_a_branch(x):
    return lax.cond(x[0, 0] > 0, special, lambda v: v, x)


def in_a_library(x):
    return jnp.abs(jnp.fft.rfft(x))  # here


def in_a_compiled_library_function(x):
    return jnp.linalg.cholesky(x @ x.T)  # here


def unbounded(x):
    return lax.while_loop(lambda v: v[0, 0] < 1, lambda v: v + 1, x)  # here


def printing(x):
    jax.debug.print("x is {}", x)  # here
    return x


def calling_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)  # here


UNSUPPORTED = {
    "digamma": (special, special, ""),
    "lgamma": (in_a_loop, in_a_loop, "batch"),
    "polygamma": (in_a_gradient, special, ""),
    "digamma in a branch": (in_a_branch, special, ""),
    "fft": (in_a_library, in_a_library, "cosines"),
    "cholesky": (in_a_compiled_library_function, in_a_compiled_library_function, "linear algebra"),
    "while": (unbounded, unbounded, "fori_loop"),
    "debug_print": (printing, printing, "jax.debug.print"),
    "pure_callback": (calling_back, calling_back, "Python"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_primitive_is_named_with_the_line_that_asks_for_it(name):
    fn, culprit, hint = UNSUPPORTED[name]
    error = refused(fn, X)
    assert error.got.split(" ")[0] == name.split(" ")[0]
    assert error.where.endswith(line_of(culprit, "# here"))
    assert error.hint and hint in error.hint


def test_a_use_that_a_rule_does_not_cover_is_named_too():
    def fn(x):
        return lax.bitcast_convert_type(x, jnp.int32)  # here

    error = refused(fn, X)
    assert "bitcast_convert_type (float32 to int32)" in error.got and error.where.endswith(line_of(fn, "# here"))
    assert "reduce_precision" in refused(lambda x: lax.reduce_precision(x, 5, 10), X).got
    assert "bool" in refused(lambda x: lax.dot(x, x), X > 0).got
    assert "int32" in refused(lambda x: lax.conv(x, x, (1, 1), "SAME"), whole(2, 2, 3, 3)).got
    assert (
        "reduce_window_max"
        in refused(
            lambda x: lax.reduce_window(x, np.iinfo(np.int32).min, lax.max, (1, 2), (1, 2), "VALID"), whole(2, 4)
        ).got
    )
    assert (
        "4 axes"
        in refused(lambda x: lax.reduce_window(x, -np.inf, lax.max, (2,) * 4, (1,) * 4, "VALID"), reals(3, 3, 3, 3)).got
    )
    other = refused(lambda x: jax.random.bits(jax.random.wrap_key_data(x, impl="rbg")), np.zeros(4, np.uint32))
    assert other.got


def test_a_dtype_that_graphs_do_not_hold_is_refused_with_the_line():
    def fn(x):
        return x.astype(jnp.float16) + 1  # here

    error = refused(fn, X, kind=PlanBuildError)
    assert error.got == "float16" and error.where.endswith(line_of(fn, "# here"))
    assert refused(lambda x: jnp.fft.fft(x).real, X, kind=PlanBuildError).got == "complex64"


def test_names_must_tell_inputs_and_outputs_apart():
    x = jax.ShapeDtypeStruct((2,), np.float32)
    for names, fn in (
        (["a"], lambda d: {"a": d["a"]}),
        (["_a"], lambda d: {"b": d["_a"]}),
        (["a"], lambda d: {"": d["a"]}),
        (["a"], lambda d: d["a"]),
        (["a"], lambda d: {"b": {"c": d["a"]}}),
    ):
        with pytest.raises(PlanBuildError):
            lower(fn, dict.fromkeys(names, x), name="test")


SCAN = {
    "nothing to walk along": (lambda c, s, x: c, {}, "no xs"),
    "another set of names": (lambda c, s, x: {"b": c["a"]}, {"x": np.float32}, "b"),
    "another dtype": (lambda c, s, x: {"a": c["a"].astype(np.int32)}, {"x": np.float32}, "int32"),
    "another shape": (lambda c, s, x: {"a": c["a"][:1]}, {"x": np.float32}, r"float32\[1\]"),
}


@pytest.mark.parametrize("name", SCAN)
def test_a_step_must_return_what_it_carries(name):
    step, xs, got = SCAN[name]
    with pytest.raises(PlanBuildError, match=got):
        lower_scan(
            step,
            carry={"a": jax.ShapeDtypeStruct((2,), np.float32)},
            shared={},
            xs={k: jax.ShapeDtypeStruct((), d) for k, d in xs.items()},
            out_names={"a": "next.a"},
            name="test",
        )


def with_loss(change):
    return replace(MLP, loss=lambda params, batch, key: change(MLP.loss(params, batch, key)))


def always_random(params, batch, key):
    return MLP.loss(params, {**batch, "x": batch["x"] + jax.random.uniform(key, batch["x"].shape)}, key)


MISTAKES = {
    "a mean instead of one number each": (with_loss(lambda o: Out(o.loss.mean(), o.weight)), r"loss.*shape \[\]"),
    "a bare array": (with_loss(lambda o: o.loss), "Out"),
    "a weight for all": (with_loss(lambda o: Out(o.loss, 1.0)), "weight"),
    "a metric that is a fraction": (with_loss(lambda o: Out(o.loss, o.weight, {"m": o.loss.mean()})), "m"),
    "a metric with a taken name": (with_loss(lambda o: Out(o.loss, o.weight, {"examples": o.loss})), "examples"),
    "an integer parameter": (replace(MLP, init=lambda key: {**MLP.init(key), "n": jnp.arange(3)}), "int32"),
    "a half parameter": (replace(MLP, init=lambda key: {**MLP.init(key), "n": jnp.ones(3, "bfloat16")}), "bfloat16"),
    "no parameters": (replace(MLP, init=lambda key: {}), "parameter"),
    "a slash in a name": (replace(MLP, init=lambda key: {**MLP.init(key), "a/b": jnp.ones(3)}), "a/b"),
    "randomness without a key": (replace(MLP, loss=always_random), "None for a key"),
    "a prediction that is no dict": (replace(MLP, predict=lambda params, inputs: inputs["x"]), "predict"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_task_is_named(name):
    task, match = MISTAKES[name]
    with pytest.raises(PlanBuildError, match=match):
        build_plan(task, fedavg_local(0.1), OPTIONS)


@pytest.mark.parametrize(
    "name", ["batch_size", "epochs", "chunk_steps", "eval_batch_size", "min_examples", "max_examples"]
)
def test_sizes_are_at_least_one(name):
    with pytest.raises(PlanBuildError, match=name):
        build_plan(MLP, fedavg_local(0.1), replace(OPTIONS, **{name: 0}))


def test_an_unsupported_primitive_in_a_loss_names_the_line_of_the_loss():
    def loss(params, batch, key):
        out = MLP.loss(params, batch, key)
        return Out(out.loss + lax.digamma(1 + out.loss), out.weight)  # here

    with pytest.raises(UnsupportedPrimitiveError) as caught:
        build_plan(replace(MLP, loss=loss), fedavg_local(0.1), OPTIONS)
    assert caught.value.where.endswith(line_of(loss, "# here")) and "gamma" in caught.value.got


def test_a_segment_that_finish_does_not_make_is_refused():
    local = fedavg_local(0.1)
    misspelt = replace(local, max_delta={"modle": 1.0}, weighting={"modle": "examples"})
    with pytest.raises(PlanBuildError, match="modle"):
        build_plan(MLP, misspelt, OPTIONS)
    with pytest.raises(PlanBuildError, match=r"weighting.*model.*none"):
        build_plan(MLP, replace(local, weighting={}), OPTIONS)
