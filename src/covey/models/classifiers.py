"""The image classifiers of 1602.05629, section 3."""

from typing import Any

import jax
import jax.numpy as jnp

from covey.models.layers import conv2d, conv2d_init, dense, dense_init, max_pool_2x2

__all__ = ["cifar_cnn", "cifar_cnn_init", "mnist_2nn", "mnist_2nn_init", "mnist_cnn", "mnist_cnn_init"]


def mnist_2nn_init(key: Any) -> Any:
    """Return the "2NN": two hidden layers of 200 units; 199,210 parameters."""
    keys = jax.random.split(key, 3)
    sizes = (784, 200, 200, 10)
    return {f"dense{i + 1}": dense_init(keys[i], sizes[i], sizes[i + 1]) for i in range(3)}


def mnist_2nn(params: Any, x: Any) -> Any:
    """Return logits [B, 10] for images x [B, 784]."""
    x = jax.nn.relu(dense(params["dense1"], x))
    x = jax.nn.relu(dense(params["dense2"], x))
    return dense(params["dense3"], x)


def mnist_cnn_init(key: Any) -> Any:
    """Return the CNN: 5 x 5 convolutions to 32 and 64 channels, 512 units; 1,663,370 parameters."""
    keys = jax.random.split(key, 4)
    return {
        "conv1": conv2d_init(keys[0], (5, 5), 1, 32),
        "conv2": conv2d_init(keys[1], (5, 5), 32, 64),
        "dense1": dense_init(keys[2], 7 * 7 * 64, 512),
        "dense2": dense_init(keys[3], 512, 10),
    }


def mnist_cnn(params: Any, x: Any) -> Any:
    """Return logits [B, 10] for images x [B, 784]."""
    x = jnp.reshape(x, (-1, 1, 28, 28))
    # Pooling before the ReLU gives the same numbers (it is monotone) on a quarter of the elements.
    x = jax.nn.relu(max_pool_2x2(conv2d(params["conv1"], x)))
    x = jax.nn.relu(max_pool_2x2(conv2d(params["conv2"], x)))
    x = jax.nn.relu(dense(params["dense1"], jnp.reshape(x, (x.shape[0], -1))))
    return dense(params["dense2"], x)


def cifar_cnn_init(key: Any) -> Any:
    """Return the network for 24 x 24 x 3: two 5 x 5 convolutions to 64, 384 and 192 units; 1,068,298 parameters.

    The paper names "the model architecture from the TensorFlow tutorial"; its local response normalization, which
    later networks left out, is left out here too, and pools are 2 x 2.
    """
    keys = jax.random.split(key, 5)
    return {
        "conv1": conv2d_init(keys[0], (5, 5), 3, 64),
        "conv2": conv2d_init(keys[1], (5, 5), 64, 64),
        "dense1": dense_init(keys[2], 6 * 6 * 64, 384),
        "dense2": dense_init(keys[3], 384, 192),
        "dense3": dense_init(keys[4], 192, 10),
    }


def cifar_cnn(params: Any, x: Any) -> Any:
    """Return logits [B, 10] for whitened images x [B, 24, 24, 3]."""
    x = jnp.transpose(x, (0, 3, 1, 2))
    x = jax.nn.relu(max_pool_2x2(conv2d(params["conv1"], x)))
    x = jax.nn.relu(max_pool_2x2(conv2d(params["conv2"], x)))
    x = jax.nn.relu(dense(params["dense1"], jnp.reshape(x, (x.shape[0], -1))))
    x = jax.nn.relu(dense(params["dense2"], x))
    return dense(params["dense3"], x)
