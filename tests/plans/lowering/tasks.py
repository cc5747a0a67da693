"""Small tasks, and plans made of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from covey.algorithms.local.fedavg import fedavg_local
from covey.models.language import char_lstm, char_lstm_init
from covey.models.layers import conv2d, conv2d_init, dense, dense_init
from covey.models.losses import classification, next_symbol
from covey.plans.lowering import run_model
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.lowering.programs import prefixed
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.plan import Plan, unpack_plan
from covey.plans.task import Local, PlanOptions, Task

OPTIONS = PlanOptions(batch_size=4, eval_batch_size=5, max_examples=20)


def schema(*fields: FieldSpec) -> ExampleSchema:
    return ExampleSchema(fields=fields, query=Query(collection="examples"))


POINTS = schema(FieldSpec(name="x", shape=(6,)), FieldSpec(name="y", dtype="int32", role="label", num_values=3))


def init(key: Any) -> Any:
    first, second = jax.random.split(key)
    return {"hidden": dense_init(first, 6, 8), "output": dense_init(second, 8, 3)}


def logits(params: Any, x: Any) -> Any:
    return dense(params["output"], jax.nn.relu(dense(params["hidden"], x)))


MLP = Task(
    name="mlp",
    init=init,
    loss=lambda params, batch, key: classification(logits(params, batch["x"]), batch["y"]),
    predict=lambda params, inputs: {"probabilities": jax.nn.softmax(logits(params, inputs["x"]))},
    examples=POINTS,
)


def dropout_loss(params: Any, batch: Any, key: Any) -> Any:
    h = jax.nn.relu(dense(params["hidden"], batch["x"]))
    if key is not None:
        h = jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h / 0.5, 0.0)
    return classification(dense(params["output"], h), batch["y"])


DROPOUT = replace(MLP, name="dropout", loss=dropout_loss, predict=None)


def cnn_logits(params: Any, x: Any) -> Any:
    h = conv2d(params["conv"], x)
    h = jax.nn.relu(jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "SAME"))
    return dense(params["output"], h.reshape(h.shape[0], -1))


CNN = Task(
    name="cnn",
    init=lambda key: {"conv": conv2d_init(key, (3, 3), 2, 4), "output": dense_init(key, 4 * 3 * 3, 3)},
    loss=lambda params, batch, key: classification(cnn_logits(params, batch["x"]), batch["y"]),
    examples=schema(
        FieldSpec(name="x", shape=(2, 6, 6)), FieldSpec(name="y", dtype="int32", role="label", num_values=3)
    ),
)

LSTM = Task(
    name="lstm",
    init=lambda key: char_lstm_init(key, 11, size=4, num_units=5),
    loss=lambda params, batch, key: next_symbol(char_lstm(params, batch["x"]), batch["y"]),
    examples=schema(
        FieldSpec(name="x", shape=(7,), dtype="int32", num_values=11),
        FieldSpec(name="y", shape=(7,), dtype="int32", role="label", num_values=11),
    ),
)


def plan_of(task: Task, local: Local | None = None) -> Plan:
    return unpack_plan(build_plan(task, local or fedavg_local(0.1), OPTIONS))


def batches(num_steps: int, batch_size: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """Return ``num_steps`` full batches of points."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    return {
        "batch.x": rng.standard_normal((num_steps, batch_size, 6)).astype(np.float32),
        "batch.y": rng.integers(0, 3, (num_steps, batch_size), np.int32),
        "mask": np.ones((num_steps, batch_size), np.bool_),
    }


def start(plan: Plan, task: Task) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return what a chunk carries at the beginning, and what all its steps read."""
    params = prefixed("params", initial_params(task, seed=3))
    carry = run_model(plan.graphs["begin"], params)
    carry |= {f"metrics.{m}": np.float32(0) for m in plan.manifest.metrics} | {"step": np.uint32(0)}
    shared = {f"hyper.{h.name}": np.float32(h.default) for h in plan.manifest.hyper}
    return carry, {**params, **shared, "key": np.array([1, 2], np.uint32)}


def train(plan: Plan, carry: Mapping[str, Any], shared: Mapping[str, Any], xs: Mapping[str, Any]) -> dict[str, Any]:
    """Run one chunk of steps; what it gives is what the next chunk carries."""
    out = run_model(plan.graphs[plan.manifest.phases[0].graph], {**carry, **shared, **xs})
    return {k.removeprefix("next."): v for k, v in out.items()}


def same_bytes(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return set(a) == set(b) and all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)
