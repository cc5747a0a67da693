"""Losses in the form that a task returns: one number for each example, its weight, and what to count."""

from typing import Any

import jax
import jax.numpy as jnp

from covey.plans.task import Out

__all__ = ["classification", "cross_entropy", "next_symbol"]


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Return ``-log softmax(logits)[label]``; logits [..., classes], labels int32 [...]."""
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def classification(logits: Any, labels: Any) -> Out:
    """Return the loss of one prediction an example, with its ``correct`` count; logits [B, classes], labels [B]."""
    loss = cross_entropy(logits, labels)
    return Out(loss, jnp.ones_like(loss), {"correct": jnp.argmax(logits, axis=-1) == labels})


def next_symbol(logits: Any, labels: Any) -> Out:
    """Return the loss of a sequence model; logits [B, T, symbols], labels [B, T], where label 0 predicts nothing."""
    real = labels != 0
    loss = jnp.where(real, cross_entropy(logits, labels), 0.0)
    correct = real & (jnp.argmax(logits, axis=-1) == labels)
    return Out(loss.sum(-1), real.sum(-1), {"correct": correct.sum(-1)})
