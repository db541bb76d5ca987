"""Familiar names for common nestings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.operators.factored import Factored
from qjax.operators.maps.quantize import Quantize
from qjax.operators.operator import Map
from qjax.operators.pre import Pre
from qjax.operators.sum import Sum
from qjax.quantization import quantize


def act_quantized(op: Any, fmt: Format | str) -> Pre:
    """op behind dynamically quantized activations: "int8" scales every token, "int8_tensor" all of them together."""
    return Pre(Quantize.dynamic(fmt), op)


def rotated(w: jax.Array, T: Map, fmt: Format | str) -> Pre:
    """w [batch..., K, N] quantized after T's inverse was moved into it: Pre(T, q), equal to w up to q's error.

    >>> from qjax.operators.maps.hadamard import Hadamard
    >>> rotated(jnp.ones((8, 2)), Hadamard(None, 8), "int4_g64").shape
    (8, 2)
    """
    return Pre(T, quantize(counter(T, w), fmt, axis=-2, batch_axes=w.ndim - 2))


def counter(T: Map, w: jax.Array) -> jax.Array:
    """The matrix that behind T is w: M^-1 w for T(x) = x @ M; TypeError (NotInvertible) where T has no inverse."""
    return jnp.swapaxes(T.inverse().transpose().apply(jnp.swapaxes(w, -1, -2)), -1, -2)


def lora(op: Any, rank: int, key: jax.Array, alpha: float | None = None) -> Sum:
    """op plus a trainable low-rank branch a @ b (arXiv:2106.09685): a normal / sqrt(rank) * alpha / rank, b zero.

    The branch reads the float input even where op quantizes it. alpha defaults to rank.
    """
    *batch, K, N = op.shape
    size = (alpha if alpha is not None else rank) / rank
    a = jax.random.normal(key, (*batch, K, rank)) * jnp.float32(size / rank**0.5)
    return Sum((op, Factored(a, jnp.zeros((*batch, rank, N)))))
