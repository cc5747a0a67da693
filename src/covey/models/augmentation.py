"""Random changes of images before a step of training: crop, flip, contrast and brightness, then whitening.

Everything is a matrix product or elementwise, so that it lowers to a plan and runs on the device, where the images are.
The strengths are those of the tutorial that 1602.05629, section 3, follows: contrast from 0.2 to 1.8, brightness within
63/255.
"""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["augmented", "centre", "whitened"]

_CONTRAST = (0.2, 1.8)
_BRIGHTNESS = 63 / 255


def centre(images: Any, size: int) -> Any:
    """Return the middle [B, size, size, C] of images [B, H, W, C]."""
    top, left = (images.shape[1] - size) // 2, (images.shape[2] - size) // 2
    return images[:, top : top + size, left : left + size]


def augmented(images: Any, size: int, key: Any) -> Any:
    """Return a random crop [B, size, size, C] of every image [B, H, W, C], pixels in [0, 1] before and wider after.

    Each image has its own place, flip (one half), contrast factor and brightness, drawn from ``key``.
    """
    place, flip, contrast, brightness = jax.random.split(key, 4)
    num, height, width = images.shape[:3]
    tops, lefts = jax.random.uniform(place, (2, num))
    rows = _window(tops, height, size)
    columns = _window(lefts, width, size)
    columns = jnp.where(jax.random.uniform(flip, (num, 1, 1)) < 0.5, columns[:, ::-1], columns)
    # A crop as two products with rows of a unit matrix: gathering at random places lowers to slow code on devices.
    crops = jnp.einsum("brh,bhwc,bsw->brsc", rows, images, columns)
    low, high = _CONTRAST
    factors = low + (high - low) * jax.random.uniform(contrast, (num, 1, 1, 1))
    means = crops.mean((1, 2), keepdims=True)
    shifts = _BRIGHTNESS * (2.0 * jax.random.uniform(brightness, (num, 1, 1, 1)) - 1.0)
    return (crops - means) * factors + means + shifts


def whitened(images: Any) -> Any:
    """Return images with mean 0 and standard deviation 1 each, or at least one over the root of the pixels."""
    centred = images - images.mean((1, 2, 3), keepdims=True)
    size = images.shape[1] * images.shape[2] * images.shape[3]
    variance = jnp.square(centred).mean((1, 2, 3), keepdims=True)
    return centred / jnp.maximum(jnp.sqrt(variance), size**-0.5)


def _window(fractions: Any, length: int, size: int) -> Any:
    """Return for fractions [B] in [0, 1) the rows [B, size, length] of a unit matrix, from a place drawn evenly."""
    starts = jnp.floor(fractions * (length - size + 1))
    wanted = starts[:, None] + jnp.arange(size, dtype=jnp.float32)
    return (wanted[:, :, None] == jnp.arange(length, dtype=jnp.float32)).astype(jnp.float32)
