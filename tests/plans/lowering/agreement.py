"""Lower a function, run the graph on onnxruntime, and compare with JAX: what these tests have in common."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covey.plans.lint import lint_graph
from covey.plans.lowering import compare, count_roundings, lower, run_model


def named(fn: Callable[..., Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Make of a function of arrays a function of the dict x0, x1, ... that returns the dict y0, y1, ..."""

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        leaves = jax.tree.leaves(fn(*(inputs[f"x{i}"] for i in range(len(inputs)))))
        return {f"y{i}": leaf for i, leaf in enumerate(leaves)}

    return run


def inputs_of(arrays: Any) -> dict[str, np.ndarray]:
    return {f"x{i}": np.asarray(a) for i, a in enumerate(arrays)}


def structs_of(inputs: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in inputs.items()}


def agree(fn: Callable[..., Any], *arrays: Any, also: Any = ()) -> dict[str, np.ndarray]:
    """Check that the graph of ``fn`` passes the lint and agrees with JAX; return what the graph gives.

    The samples are ``arrays`` and each tuple in ``also``.
    """
    samples = [inputs_of(a) for a in (arrays, *also)]
    structs, run = structs_of(samples[0]), named(fn)
    model = lower(run, structs, name="test")
    lint_graph(model, "test.onnx")
    compare(model, jax.jit(run), samples, num_roundings=count_roundings(run, structs))
    return run_model(model, samples[0])


def agree_on_gradients(fn: Callable[..., Any], *arrays: Any) -> None:
    """Check the gradient by every float32 argument of a sum of ``fn``'s results, each element with its own weight."""
    floats = tuple(i for i, a in enumerate(arrays) if np.asarray(a).dtype == np.float32)

    def total(*args: Any) -> Any:
        out = jnp.asarray(0.0)
        for leaf in jax.tree.leaves(fn(*args)):
            weights = np.sin(1.0 + np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape)
            out += jnp.sum(leaf * weights)
        return out

    for name, part in agree(jax.grad(total, floats), *arrays).items():
        assert np.any(part != 0), f"{name}: a gradient of zeros would agree with anything"


def reals(*shape: int, seed: int = 0) -> np.ndarray:
    """Return standard normals: distinct numbers, so that no maximum is near a tie."""
    return np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape).astype(np.float32)


def whole(*shape: int, low: int = -5, high: int = 6, seed: int = 0) -> np.ndarray:
    """Return int32 numbers in [low, high); with many equal ones where the range is small."""
    return np.random.Generator(np.random.Philox(key=seed)).integers(low, high, shape, np.int32)
