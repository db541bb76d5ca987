"""How far a model's predictions are from the reference model's (the measures llama.cpp prints; catalogue section V)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


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


def next_token_loss(logits: Array, tokens: Array) -> Array:
    """Mean over positions of -log p(the token that follows), float32: logits [B, T, vocabulary], tokens [B, T] ints.

    The loss of a language model, for `qjax.run(..., loss=next_token_loss)`.

    >>> round(float(next_token_loss(jnp.zeros((1, 3, 8)), jnp.array([[1, 2, 3]]))), 4)  # log 8
    2.0794
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {logits.shape} and tokens {tokens.shape} do not fit; give [B, T, vocabulary], [B, T]")
    log_p = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))


def most_likely(logits: Array) -> Array:
    """The first of the largest logits [..., vocab], int32: `jnp.argmax`, for which a NaN is the largest.

    Two plain reductions, which XLA:CPU computes on vectors: its argmax goes through the vocabulary entry by entry, and
    that is some percent of a token's time.

    >>> most_likely(jnp.array([[1.0, 3.0, 3.0], [jnp.inf, jnp.nan, 0.0]])).tolist()
    [1, 1]
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)  # a NaN where there is one, which equals nothing
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where((logits == largest) | jnp.isnan(logits), ids, jnp.full_like(ids, logits.shape[-1])).min(axis=-1)


def top1_flips(logits: Array, reference: Array) -> Array:
    """Share of positions whose most likely token differs: [..., vocabulary] twice to a float32 scalar."""
    _same(logits, reference)
    return jnp.mean((most_likely(logits) != most_likely(reference)).astype(jnp.float32))


def _same(logits: Array, reference: Array) -> None:
    if logits.shape != reference.shape:
        raise ValueError(f"shapes differ: logits {logits.shape} and reference {reference.shape}")
