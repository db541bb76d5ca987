"""Norms, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from qjax.models.architecture import Architecture


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Divide x [..., width] by its root mean square and multiply by scale [width], in float32."""
    x = x.astype(jnp.float32)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + jnp.float32(eps))
    return y * jnp.broadcast_to(scale.astype(jnp.float32), y.shape)


def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Subtract the mean of x [..., width], divide by its deviation, times scale plus bias [width], in float32."""
    x = x.astype(jnp.float32)
    y = x - jnp.mean(x, axis=-1, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + jnp.float32(eps))
    return y * jnp.broadcast_to(scale.astype(jnp.float32), y.shape) + jnp.broadcast_to(bias, y.shape)


def normed(arch: Architecture, norm: Mapping[str, Any], x: Array) -> Array:
    """The architecture's norm of x [..., width] with the parameters {scale[, bias]}."""
    if arch.norm == "rms":
        return rms_norm(x, norm["scale"], arch.eps)
    return layer_norm(x, norm["scale"], norm["bias"], arch.eps)
