"""These tests compile hundreds of small programs once each, so XLA's optimizations cost more than they save."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def fast_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
