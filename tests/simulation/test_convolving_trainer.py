"""The JAX trainer on a model that convolves and pools: rewritten, in a loop, beside onnxruntime."""

import functools

import jax
import numpy as np

from covey.algorithms.local.fedavg import fedavg_local
from covey.device.trainer import OnnxTrainer, TrainingJob
from covey.models.layers import conv2d, conv2d_init, dense, dense_init, max_pool_2x2
from covey.models.losses import classification
from covey.plans.lowering.build import build_plan, initial_params
from covey.plans.lowering.check import tolerance
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.plan import unpack_plan
from covey.plans.task import PlanOptions, Task
from covey.simulation.jax_trainer import JaxTrainer

SEED = bytes(range(32))


def logits(params, x):
    h = jax.nn.relu(max_pool_2x2(conv2d(params["first"], x)))
    h = jax.nn.relu(max_pool_2x2(conv2d(params["second"], h)))
    return dense(params["output"], h.reshape(h.shape[0], -1))


TASK = Task(
    name="digits",
    init=lambda key: {
        "first": conv2d_init(key, (5, 5), 1, 32),
        "second": conv2d_init(key, (5, 5), 32, 32),
        "output": dense_init(key, 3 * 3 * 32, 3),
    },
    loss=lambda params, batch, key: classification(logits(params, batch["x"]), batch["y"]),
    examples=ExampleSchema(
        fields=(
            FieldSpec(name="x", shape=(1, 12, 12)),
            FieldSpec(name="y", dtype="int32", role="label", num_values=3),
        ),
        query=Query(collection="digits"),
    ),
)


@functools.cache
def world():
    local = fedavg_local()
    plan = unpack_plan(build_plan(TASK, local, PlanOptions(batch_size=4, epochs=2, chunk_steps=3)))
    rng = np.random.default_rng(1)
    x = np.maximum(rng.standard_normal((10, 1, 12, 12)), 0).astype(np.float32)
    x[:, :, :3] = 0  # an empty margin: ties in every window there
    job = TrainingJob(plan, 0, initial_params(TASK, 0), {}, {"lr": 0.05}, SEED)
    return local, job, {"x": x, "y": rng.integers(0, 3, 10).astype(np.int32)}


def difference(a, b):
    return max(float(np.abs(v - b.segments[k]).max() / max(1.0, np.abs(v).max())) for k, v in a.segments.items())


def test_equal_jobs_give_equal_bits_and_single_steps_and_onnxruntime_agree():
    local, job, examples = world()
    looped, stepwise = JaxTrainer(TASK, local), JaxTrainer(TASK, local, stepwise=True)
    a, b = (looped.run(job, examples) for _ in range(2))
    assert a.num_steps == 6
    assert all(v.tobytes() == b.segments[k].tobytes() for k, v in a.segments.items())
    for other in (stepwise, OnnxTrainer()):
        c = other.run(job, examples)
        assert (a.weight, a.num_examples, a.num_steps) == (c.weight, c.num_examples, c.num_steps)
        # 40 roundings in a step; F(4, 5) on two axes makes each up to five times as large.
        assert difference(a, c) <= 5 * tolerance(40 * a.num_steps)
