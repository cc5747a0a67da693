"""Random numbers in the graph are those of JAX, bit for bit where they are integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from .agreement import agree, agree_on_gradients, reals

KEY, OTHER_KEY = np.array([3, 5], np.uint32), np.array([0, 2**32 - 1], np.uint32)


def test_dropout_through_a_key_draws_the_bits_of_jax():
    def dropout(x, w, words):
        kept = jax.random.bernoulli(jax.random.fold_in(jax.random.wrap_key_data(words), 3), 0.7, x.shape)
        return jnp.where(kept, x / 0.7, 0.0) @ w

    agree_on_gradients(dropout, reals(5, 6), reals(6, 4), KEY)
    agree(lambda words: jax.random.bernoulli(jax.random.wrap_key_data(words), 0.5, (40, 30)), KEY)


DRAWS = {
    "normal": lambda k: jax.random.normal(k, (50,)),
    "uniform": lambda k: jax.random.uniform(k, (50,), minval=-2, maxval=3),
    "randint": lambda k: jax.random.randint(k, (50,), 0, 17),
    "categorical": lambda k: jax.random.categorical(k, jnp.log(jnp.arange(1.0, 6)), shape=(20,)),
    "permutation": lambda k: jax.random.permutation(k, 12),
    "exponential": lambda k: jax.random.exponential(k, (50,)),
    "truncated_normal": lambda k: jax.random.truncated_normal(k, -1.0, 2.0, (50,)),
    "choice": lambda k: jax.random.choice(k, 9, (4,), replace=False),
    "two_keys": lambda k: [jax.random.uniform(child) for child in jax.random.split(k)],
    "keys_by_slice": lambda k: jax.vmap(jax.random.bits)(jax.random.split(k, (4, 2))[1:3, 0]),
    "key_by_number": lambda k: jax.random.bits(jax.random.split(k, 4)[jax.random.randint(k, (), 0, 4)]),
    "keys_by_numbers": lambda k: jax.vmap(jax.random.bits)(jax.random.split(k, 4)[jax.random.randint(k, (5,), 0, 4)]),
    "key_by_condition": lambda k: jax.vmap(jax.random.bits)(
        jnp.where(jax.random.bernoulli(k, 0.5, (4,)), *jax.random.split(k, (2, 4)))
    ),
    "keys_in_a_scan": lambda k: lax.scan(lambda c, k: (c, jax.random.uniform(k)), 0, jax.random.split(k, 4))[1],
    "split": lambda k: jax.vmap(lambda child: jax.random.uniform(child, (3,)))(jax.random.split(k, 4)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_are_those_of_jax(name):
    agree(
        lambda words: DRAWS[name](jax.random.wrap_key_data(words)), KEY, also=[(np.array([0, 2**32 - 1], np.uint32),)]
    )
