"""An LSTM layer whose recurrent weight gradient is one matrix product.

Differentiating a scan adds an outer product to the gradient of the recurrent weights at every time step: T small
products and T passes over a [H, 4H] accumulator. Here the backward scan only stacks the gates' gradients, and one
product of the stacked states with them gives the same sum. The gain reaches devices too, for the plan's graph is
lowered from this.

Gates as in Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000), in the order input, forget,
candidate, output: ``c' = f c + i u``, ``h' = o tanh(c')``.
"""

from typing import Any

import jax
import jax.numpy as jnp

from covey.models.layers import dense_init

__all__ = ["lstm", "lstm_init"]


def lstm_init(key: Any, num_inputs: int, num_units: int) -> dict[str, Any]:
    """Return ``input`` (dense to the four gates, forget bias 1) and ``recurrent`` [units, 4 units]."""
    first, second = jax.random.split(key)
    gates = dense_init(first, num_inputs, 4 * num_units)
    gates["b"] = gates["b"].at[num_units : 2 * num_units].set(1.0)
    gates["w"] = gates["w"] * 0.5**0.5  # He's factor is for ReLU; gates saturate
    return {"input": gates, "recurrent": num_units**-0.5 * jax.random.normal(second, (num_units, 4 * num_units))}


def lstm(params: dict[str, Any], x: Any) -> Any:
    """Return the states [T, B, units] for inputs x [T, B, inputs], from a state of zeros."""
    return _recur(x @ params["input"]["w"] + params["input"]["b"], params["recurrent"])


def _gates(g: Any) -> tuple[Any, Any, Any, Any]:
    i, f, u, o = jnp.split(g, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(u), jax.nn.sigmoid(o)


@jax.custom_vjp
def _recur(x: Any, w: Any) -> Any:
    return _forward(x, w)[0]


def _forward(x: Any, w: Any) -> tuple[Any, Any]:
    zeros = jnp.zeros((x.shape[1], w.shape[0]), x.dtype)

    def step(carry: Any, gates: Any) -> Any:
        h, c = carry
        i, f, u, o = _gates(gates + h @ w)
        c = f * c + i * u
        h = o * jnp.tanh(c)
        return (h, c), (h, c, i, f, u, o)

    _, (hs, cs, i, f, u, o) = jax.lax.scan(step, (zeros, zeros), x)
    return hs, (hs, cs, i, f, u, o, w)


def _backward(saved: Any, dhs: Any) -> tuple[Any, Any]:
    hs, cs, i, f, u, o, w = saved
    zeros = jnp.zeros_like(hs[:1])
    earlier_c, earlier_h = jnp.concatenate([zeros, cs[:-1]]), jnp.concatenate([zeros, hs[:-1]])
    tanh_c, transposed = jnp.tanh(cs), w.T

    def step(carry: Any, at: Any) -> Any:
        dh, dc = carry
        dh_t, i, f, u, o, c, tanh_c = at
        dh = dh + dh_t
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        parts = (dc * u * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - u * u), dh * tanh_c * o * (1 - o))
        dg = jnp.concatenate(parts, axis=-1)
        return (dg @ transposed, dc * f), dg

    _, dgs = jax.lax.scan(step, (zeros[0], zeros[0]), (dhs, i, f, u, o, earlier_c, tanh_c), reverse=True)
    num_units = w.shape[0]
    return dgs, earlier_h.reshape(-1, num_units).T @ dgs.reshape(-1, 4 * num_units)


_recur.defvjp(_forward, _backward)
