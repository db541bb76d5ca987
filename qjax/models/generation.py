"""Sampling from a decoder as one compiled loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.metrics import most_likely
from qjax.models.decoder import Decoder, Params
from qjax.trace.sites import tapped


def generate(
    model: Decoder,
    params: Params,
    tokens: Array,
    steps: int,
    key: Array | None = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    lengths: Array | None = None,
    stop: int | None = None,
) -> Array:
    """Continue prompts token by token.

    Args:
        model: the decoder; its `key_cache` and `value_cache` hold what was read.
        params: float or quantized parameters, or a Program with them.
        tokens: int [batch, tokens], prompts of unequal length padded on the left.
        steps: how many tokens to add.
        key: needed to sample, that is when temperature is positive; step i of row b depends on nothing else.
        temperature: 0 takes the most likely token.
        top_k: sample among the k most likely tokens only.
        lengths: int32 [batch], tokens of each prompt without its padding; by default all.
        stop: token id after which a row repeats that id; the loop ends when all rows have.

    Returns:
        int32 [batch, steps], the new tokens.

    Raises:
        ValueError: for an empty prompt, steps < 1, a negative temperature, a top_k out of range, or a missing key.

    >>> from qjax.models import Architecture
    >>> model = Decoder(Architecture(vocab=32, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=16))
    >>> generate(model, model.init(jax.random.key(0)), jnp.ones((1, 3), jnp.int32), steps=4).shape
    (1, 4)
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens must be [batch, tokens] with at least one token, got shape {tokens.shape}")
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")
    if top_k is not None and not 1 <= top_k <= model.arch.vocab:
        raise ValueError(f"top_k must lie in 1..{model.arch.vocab}, got {top_k}")
    if temperature > 0 and key is None:
        raise ValueError("sampling at a positive temperature needs key=jax.random.key(...)")
    batch, width = tokens.shape
    lengths = jnp.full((batch,), width, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must be [{batch}], got shape {lengths.shape}")
    # Greedy decoding compiles without a sampler; the temperature itself is no reason to compile again.
    greedy = temperature == 0
    key = jax.random.key(0) if key is None else key
    heat = jnp.float32(1.0 if greedy else temperature)
    return _generate(model, greedy, top_k, steps, stop, params, tokens.astype(jnp.int32), lengths, key, heat)


def filtered(logits: Array, top_k: int | None) -> Array:
    """Logits [..., vocab] with all but the `top_k` largest at minus infinity; ties with the last one stay.

    >>> filtered(jnp.array([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    if top_k is None:
        return logits
    least = lax.top_k(logits, top_k)[0][..., -1:]
    return jnp.where(logits < least, jnp.full_like(logits, -jnp.inf), logits)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _generate(
    model: Decoder,
    greedy: bool,
    top_k: int | None,
    steps: int,
    stop: int | None,
    params: Params,
    tokens: Array,
    lengths: Array,
    key: Array,
    temperature: Array,
) -> Array:
    batch, width = tokens.shape
    decode = tapped(partial(model.decode, last=True))

    def choose(logits: Array, step: Array) -> Array:
        if greedy:
            return most_likely(logits)
        keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.fold_in(key, step), row))(jnp.arange(batch))
        return jax.vmap(jax.random.categorical)(keys, filtered(logits / temperature, top_k)).astype(jnp.int32)

    # Left padding gets negative positions, which the cache neither stores nor shows.
    positions = jnp.arange(width, dtype=jnp.int32)[None] - (jnp.int32(width) - lengths)[:, None]
    logits, state = decode(params, model.init_cache(batch, width + steps), tokens, positions)
    token = choose(logits[:, 0], jnp.int32(0))
    done = jnp.zeros((batch,), bool) if stop is None else token == stop
    out = jnp.full((batch, steps), 0 if stop is None else stop, jnp.int32).at[:, 0].set(token)

    # One token's products drop the axes of one from what they read. XLA:CPU updates the cache in place only where the
    # loop carries it in that very shape; else every step copies all of it, several times.
    leaves, structure = jax.tree.flatten(state)
    shapes = [leaf.shape for leaf in leaves]

    def bare(state: Any) -> list[Array]:
        return [jnp.squeeze(leaf) for leaf in jax.tree.leaves(state)]

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, held, token, done, out = carry
        state = jax.tree.unflatten(structure, [a.reshape(shape) for a, shape in zip(held, shapes, strict=True)])
        logits, state = decode(params, state, token[:, None], (lengths + step - 1)[:, None])
        token = choose(logits[:, 0], step)
        if stop is not None:
            token = jnp.where(done, jnp.int32(stop), token)
            done = done | (token == stop)
        return step + 1, bare(state), token, done, lax.dynamic_update_slice(out, token[:, None], (jnp.int32(0), step))

    def going(carry: tuple[Any, ...]) -> Array:
        return (carry[0] < steps) & ~jnp.all(carry[3])

    return lax.while_loop(going, body, (jnp.int32(1), bare(state), token, done, out))[-1]
