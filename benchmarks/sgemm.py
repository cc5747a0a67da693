"""How much of the machine's speed in matrix products does a client step use? The two numbers that this needs.

``python -m benchmarks.sgemm RECIPE`` prints the floating-point operations of one step (the matrix products and
convolutions of forward and backward pass, counted in the traced program; the gradient of the examples is not in it),
and the best speed of a 1024 x 1024 x 1024 product in XLA, as JSON. On one thread, if the environment says so.
"""

import json
import sys
import time
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from covey.recipes.recipe import load_recipe

_SIZE = 1024
_REPEATS = 40


def step_flop(source: str) -> int:
    """Return the floating-point operations of one local step of a recipe."""
    recipe = load_recipe(source)
    task, size = recipe.task(), recipe.settings.batch_size
    batch = {f.name: jax.ShapeDtypeStruct((size, *f.shape), f.dtype) for f in recipe.examples.fields}
    params = jax.eval_shape(task.init, jax.random.key(0))
    gradient = jax.grad(lambda p, b: task.loss(p, b, jax.random.key(0)).loss.sum())
    return flop(jax.make_jaxpr(gradient)(params, batch).jaxpr)


def flop(jaxpr: Any) -> int:
    """Return the operations of the matrix products and convolutions of a jaxpr, and of those within it."""
    total = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in equation.invars]
        out = prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            features = equation.params["dimension_numbers"].rhs_spec[0]
            total += 2 * out * prod(shapes[1]) // shapes[1][features]
        else:
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            inner = [getattr(v, "jaxpr", v) for v in equation.params.values()]
            total += times * sum(flop(v) for v in inner if hasattr(v, "eqns"))
    return total


def peak_flop_per_s() -> float:
    """Return the best speed of a square product."""
    a = jax.random.normal(jax.random.key(0), (_SIZE, _SIZE))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best_s = float("inf")
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        product(a, a).block_until_ready()
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * _SIZE**3 / best_s


if __name__ == "__main__":
    print(json.dumps({"step_flop": step_flop(sys.argv[1]), "peak_flop_per_s": peak_flop_per_s()}))
