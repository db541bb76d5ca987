"""How far a model's predictions are from the reference model's (the measures llama.cpp prints; catalogue section V)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def kl_divergence(logits: Array, reference: Array) -> Array:
    """KL(reference || logits) per position in nats: [..., vocabulary] twice to float32 [...]; never below zero.

    >>> float(kl_divergence(jnp.array([0.0, 1.0]), jnp.array([3.0, 4.0])))
    0.0
    """
    _same(logits, reference)
    log_p = jax.nn.log_softmax(reference.astype(jnp.float32))
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    p = jnp.exp(log_p)
    # 0 log 0 = 0 where a reference logit is -inf.
    terms = jnp.where(p > 0, p * (log_p - log_q), jnp.float32(0))
    return jnp.maximum(jnp.sum(terms, axis=-1), jnp.float32(0))


def top1_flips(logits: Array, reference: Array) -> Array:
    """Share of positions whose most likely token differs: [..., vocabulary] twice to a float32 scalar."""
    _same(logits, reference)
    return jnp.mean((jnp.argmax(logits, axis=-1) != jnp.argmax(reference, axis=-1)).astype(jnp.float32))


def _same(logits: Array, reference: Array) -> None:
    if logits.shape != reference.shape:
        raise ValueError(f"shapes differ: logits {logits.shape} and reference {reference.shape}")
