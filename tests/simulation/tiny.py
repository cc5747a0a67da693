"""A small recipe: linear softmax on three blobs; twelve devices with three to fourteen examples each."""

import numpy as np

from covey.data.dataset import from_clients
from covey.plans.manifest import ExampleSchema, FieldSpec, Query
from covey.plans.task import Out, Task
from covey.recipes import Recipe, Settings

NUM_CLIENTS, NUM_FEATURES, NUM_CLASSES = 12, 4, 3

EXAMPLES = ExampleSchema(
    fields=(
        FieldSpec(name="x", shape=(NUM_FEATURES,)),
        FieldSpec(name="y", dtype="int32", role="label", num_values=NUM_CLASSES),
    ),
    query=Query(collection="blobs"),
)


def task():
    import jax
    import jax.numpy as jnp

    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (NUM_FEATURES, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)}

    def loss(params, batch, key):
        log_p = jax.nn.log_softmax(batch["x"] @ params["w"] + params["b"])
        losses = -jnp.take_along_axis(log_p, batch["y"][:, None], axis=1)[:, 0]
        correct = (jnp.argmax(log_p, axis=1) == batch["y"]).astype(jnp.float32)
        return Out(losses, jnp.ones_like(losses), {"correct": correct})

    return Task("blobs", init, loss, EXAMPLES)


def _blobs(rng, count):
    y = rng.integers(0, NUM_CLASSES, count).astype(np.int32)
    centres = 2.0 * np.eye(NUM_CLASSES, NUM_FEATURES)
    return {"x": (centres[y] + rng.standard_normal((count, NUM_FEATURES))).astype(np.float32), "y": y}


def data(settings, seed):
    rng = np.random.default_rng(seed)
    train = {f"client-{i}": _blobs(rng, 3 + i) for i in range(NUM_CLIENTS)}
    test = {f"client-{i}": _blobs(rng, 20) for i in range(NUM_CLIENTS)}
    return from_clients("blobs", train, test)


recipe = Recipe(
    name="blobs",
    summary="three blobs",
    task=task,
    examples=EXAMPLES,
    data=data,
    settings=Settings(cohort=5, batch_size=4, lr=0.3, trainer="onnx", chunk_steps=3, eval_batch_size=8),
)
