"""Character models: the keyboard's small window model, and the stacked LSTM of 1602.05629."""

from typing import Any

import jax
import jax.numpy as jnp

from covey.models.layers import dense, dense_init, embedding, embedding_init
from covey.models.lstm import lstm, lstm_init

__all__ = ["char_lstm", "char_lstm_init", "window_model", "window_model_init"]


def window_model_init(key: Any, num_symbols: int, context: int, *, size: int = 24, num_units: int = 192) -> Any:
    """Return the parameters of :func:`window_model`."""
    keys = jax.random.split(key, 3)
    return {
        "embedding": embedding_init(keys[0], num_symbols, size),
        "hidden": dense_init(keys[1], context * size, num_units),
        "output": dense_init(keys[2], num_units, num_symbols),
    }


def window_model(params: Any, x: Any) -> Any:
    """Return logits [B, symbols] for the last characters x [B, context].

    Y. Bengio et al., A Neural Probabilistic Language Model, JMLR 3, 2003, equation 1 without the direct connections,
    on characters. Half a megabyte at most, a fraction of a millisecond for a suggestion.
    """
    x = embedding(params["embedding"], x)
    x = jax.nn.relu(dense(params["hidden"], x.reshape(x.shape[0], -1)))
    return dense(params["output"], x)


def char_lstm_init(key: Any, num_symbols: int, *, size: int = 8, num_units: int = 256) -> Any:
    """Return the model of 1602.05629, section 3: characters in 8 dimensions, two LSTM layers of 256 units."""
    keys = jax.random.split(key, 4)
    return {
        "embedding": embedding_init(keys[0], num_symbols, size),
        "lstm1": lstm_init(keys[1], size, num_units),
        "lstm2": lstm_init(keys[2], num_units, num_units),
        "output": dense_init(keys[3], num_units, num_symbols),
    }


def char_lstm(params: Any, x: Any) -> Any:
    """Return logits [B, T, symbols] for characters x [B, T]."""
    h = embedding(params["embedding"], x.T)
    h = lstm(params["lstm2"], lstm(params["lstm1"], h))
    return jnp.swapaxes(dense(params["output"], h), 0, 1)
