"""A reduced CIFAR-10 model, for the benchmark of compression: small enough for hundreds of rounds on two cores.

Two 5 x 5 convolutions to 16 and 32 channels, one hidden layer of 64: 145,834 parameters, where 1610.05492 has an
all-convolutional network of a million and 1602.05629 the network of a tutorial of about as many. No augmentation.
"""

from typing import Any

from covey.plans.task import Out, Task
from covey.recipes.cifar import EXAMPLES, data
from covey.recipes.recipe import Recipe, Settings


def task() -> Task:
    import jax
    import jax.numpy as jnp

    from covey.models.layers import conv2d, conv2d_init, dense, dense_init, max_pool_2x2
    from covey.models.losses import classification

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 4)
        return {
            "conv1": conv2d_init(keys[0], (5, 5), 3, 16),
            "conv2": conv2d_init(keys[1], (5, 5), 16, 32),
            "dense1": dense_init(keys[2], 8 * 8 * 32, 64),
            "dense2": dense_init(keys[3], 64, 10),
        }

    def apply(params: Any, x: Any) -> Any:
        x = jnp.transpose((x - 0.5) * 4.0, (0, 3, 1, 2))  # about zero mean and unit variance; channels first
        x = jax.nn.relu(max_pool_2x2(conv2d(params["conv1"], x)))
        x = jax.nn.relu(max_pool_2x2(conv2d(params["conv2"], x)))
        x = jax.nn.relu(dense(params["dense1"], jnp.reshape(x, (x.shape[0], -1))))
        return dense(params["dense2"], x)

    def loss(params: Any, batch: Any, key: Any) -> Out:
        return classification(apply(params, batch["x"]), batch["y"])

    return Task("cifar-small", init, loss, EXAMPLES)


recipe = Recipe(
    name="cifar-small",
    summary="CIFAR-10, reduced",
    task=task,
    examples=EXAMPLES,
    data=data,
    settings=Settings(partition="iid", num_clients=100, lr=0.05, batch_size=50, chunk_steps=10, eval_batch_size=500),
)
