"""How far one tensor is from another."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def _pair(x: Array, reference: Array) -> tuple[Array, Array]:
    if x.shape != reference.shape:
        raise ValueError(f"shapes differ: {x.shape} and reference {reference.shape}")
    return x.astype(jnp.float32), reference.astype(jnp.float32)


def mse(x: Array, reference: Array) -> Array:
    """Mean squared difference, float32 scalar. Any equal shapes and float dtypes."""
    x, reference = _pair(x, reference)
    return jnp.mean((x - reference) ** 2)


def relative_error(x: Array, reference: Array) -> Array:
    """||x - reference|| / ||reference||, float32 scalar; 0 for equal zeros, inf for a zero reference missed.

    >>> float(relative_error(jnp.array([3.0, 4.4]), jnp.array([3.0, 4.0]))) < 0.0801
    True
    """
    x, reference = _pair(x, reference)
    # Scaled by the largest magnitude: the squares of 1e-30 and of 1e30 are not float32 numbers.
    top = jnp.max(jnp.abs(reference))
    unit = jnp.where(top > 0, top, jnp.float32(1))
    error, size = jnp.linalg.norm((x - reference) / unit), jnp.linalg.norm(reference / unit)
    return jnp.where(error == 0, jnp.float32(0), error / size)


def sqnr(x: Array, reference: Array) -> Array:
    """Signal to quantization noise, 10 log10(sum reference^2 / sum (x-reference)^2) in dB; inf for equal tensors."""
    return -20 * jnp.log10(relative_error(x, reference))


def cosine(x: Array, reference: Array) -> Array:
    """Cosine of the angle between the flattened tensors, float32 scalar; NaN if one of them is zero."""
    x, reference = _pair(x, reference)
    x, reference = x / jnp.max(jnp.abs(x)), reference / jnp.max(jnp.abs(reference))
    return jnp.sum(x * reference) / (jnp.linalg.norm(x) * jnp.linalg.norm(reference))
