"""Models in JAX, made of layers that lower well and run fast."""
