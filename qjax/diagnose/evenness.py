"""How evenly a tensor fills its channels: what one scale for all of them costs."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Flatness(NamedTuple):
    """The channels' norms, largest first [..., channels], and their distance from a flat curve of the same energy."""

    curve: Array
    distance: Array


@jax.jit
def flatness(x: Array) -> Flatness:
    """FlatQuant's flatness of weights or activations (Sun et al. 2024, arXiv:2410.09426; catalogue T13).

    The curve is the Euclidean norm of every channel in descending order; a perfectly flat tensor of the same Frobenius
    norm has |x| / sqrt(channels) in each. The distance of the two is divided by |x|: 0 is flat, and sqrt(2 - 2 / sqrt(
    channels)) has all its energy in one channel.

    Args:
        x: [..., tokens, channels]; of weights, tokens are the outputs.

    >>> flatness(jnp.array([[3.0, 0.0], [4.0, 5.0]])).curve.tolist()
    [5.0, 5.0]
    """
    x = x.astype(jnp.float32)
    curve = jnp.sort(jnp.linalg.norm(x, axis=-2), axis=-1, descending=True)
    total = jnp.linalg.norm(curve, axis=-1, keepdims=True)
    flat = total / jnp.float32(x.shape[-1]) ** 0.5
    distance = jnp.linalg.norm(curve - flat, axis=-1) / jnp.where(total > 0, total, jnp.float32(1))[..., 0]
    return Flatness(curve, distance)


@partial(jax.jit, static_argnames="bits")
def effective_levels(absmax: Array, bits: int = 8) -> Array:
    """Quantization levels each channel gets under one scale: 2^bits m_i / m (SmoothQuant, section 3; catalogue T14).

    Args:
        absmax: largest magnitude of each channel, [..., channels].
        bits: width of the codes.

    >>> effective_levels(jnp.array([64.0, 1.0, 0.5])).tolist()
    [256.0, 4.0, 2.0]
    """
    top = jnp.max(absmax, axis=-1, keepdims=True)
    return jnp.float32(2**bits) * absmax.astype(jnp.float32) / jnp.where(top > 0, top, jnp.float32(1))


@partial(jax.jit, static_argnames="axis")
def crest_factor(x: Array, axis: int | None = None) -> Array:
    """max |x| / rms over `axis` (all if None), float32: 1 of signs, sqrt(3) of uniform numbers; 0 of zeros.

    What decides between integers and floats of equal width for a block (catalogue T24).

    >>> crest_factor(jnp.array([3.0, -3.0, 3.0])).item()
    1.0
    """
    size = jnp.abs(x.astype(jnp.float32))
    top = jnp.max(size, axis=axis, keepdims=True)
    # In units of the largest, so that squares neither overflow nor vanish.
    mean = jnp.mean((size / jnp.where(top > 0, top, jnp.float32(1))) ** 2, axis=axis)
    return jnp.where(mean > 0, 1 / jnp.sqrt(jnp.where(mean > 0, mean, jnp.float32(1))), jnp.float32(0))
