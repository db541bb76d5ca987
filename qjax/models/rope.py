"""Rotary position embedding (RoPE): what turns queries and keys, in every layer or in those with a window."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.models.architecture import Architecture

Turns = tuple[Array, Array]  # cosines and sines


def rotate(x: Array, turns: Turns) -> Array:
    """RoPE on x [batch, tokens, heads, dim], channel i paired with i + n (the Hugging Face order of Llama).

    n is the last axis of the turns: dim / 2, or less, and then channels from 2n on stay as they are.
    """
    cos, sin = (t[:, :, None, :] for t in turns)
    pairs = cos.shape[-1]
    a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
    rest = [] if x.shape[-1] == 2 * pairs else [x[..., 2 * pairs :]]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, *rest], axis=-1)


@partial(jax.jit, static_argnums=(0, 2, 3))
def rotations(arch: Architecture, positions: Array, windowed: bool = False, long: bool = False) -> Turns:
    """Cosines and sines of RoPE for int32 positions [batch, tokens]: float32 [batch, tokens, rotated / 2] each.

    `windowed` gives those of layers with a window, `long` those of a context longer than `arch.original_context`.
    """
    theta, factors = (arch.window_theta, None) if windowed and arch.window_theta else (arch.theta, arch.rope_factors)
    if long and not windowed:
        factors = arch.long_factors
    pairs = jnp.arange(0, arch.rotated, 2, dtype=jnp.float32) / jnp.float32(arch.rotated)
    frequencies = 1.0 / (jnp.float32(theta) ** pairs)
    if factors is not None:
        frequencies = frequencies / jnp.asarray(factors, jnp.float32)
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (
        (cos, sin) if arch.rope_scale == 1 else (cos * jnp.float32(arch.rope_scale), sin * jnp.float32(arch.rope_scale))
    )


def turns_by_kind(arch: Architecture, positions: Array, context: int) -> tuple[Turns | None, Turns | None]:
    """Those of layers that see everything, and of layers with a window where they differ.

    LongRoPE (Ding et al. 2024, arXiv:2402.13753) has other frequencies for a `context` of more tokens than
    `arch.original_context`. All keys of a text must be turned alike, so that length is one number, known while tracing:
    the tokens of a forward pass (padding among them), the capacity of a cache. transformers goes by the largest
    position of each call: the same for one pass, and for decoding with a cache whose capacity is on the side of the
    original context where the text ends. A text that outgrows it there meets keys of both kinds.
    """
    long = arch.original_context is not None and context > arch.original_context
    everywhere = rotations(arch, positions, False, long) if arch.rotated else None
    return everywhere, rotations(arch, positions, True) if arch.window_theta is not None else None


def turns_of(turns: tuple[Turns | None, Turns | None], window: np.integer | Array | None) -> Turns | None:
    """Those of one layer; where a scan traces its window, a choice between two arrays."""
    everywhere, windowed = turns
    if windowed is None or window is None:
        return everywhere
    if isinstance(window, np.integer):
        return windowed if window else everywhere
    return jax.tree.map(lambda a, b: jnp.where(window > 0, a, b), windowed, everywhere)
