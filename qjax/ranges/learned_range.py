"""OmniQuant's learnable weight clipping (catalogue B6; Shao et al., ICLR 2024, arXiv:2308.13137, eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats.integer import Int

START = 4.0
"""The authors' first gamma and beta: sigmoid(4) = 0.982 of the range."""


def learnable_clipping(w: Array, gamma: Array, beta: Array, element: Int, axes: tuple[int, ...]) -> Array:
    """`w` rounded on an affine grid over [sigmoid(beta) min w, sigmoid(gamma) max w] of each block, float32.

    w           : float32; `axes` lie inside a block.
    gamma, beta : float32, of the shape of w with `axes` of size 1.
    element     : an unsigned integer, codes 0..Q.

    h = (high - low)/Q, z = -round(low/h), w_hat = (clip(round(w/h) + z, 0, Q) - z) h, where a rounding has derivative 1
    and the clip has it on [0, Q], ends included: so gradients reach w, gamma and beta through h and z.

    >>> w = jnp.array([[0.2, -0.4, 3.0, -1.0]])
    >>> start = jnp.full((1, 1), START)
    >>> learnable_clipping(w, start, start, Int(4, signed=False), (-1,)).shape
    (1, 4)
    """
    if element.min != 0:
        raise ValueError(f"learnable_clipping: codes run from 0, give an unsigned integer, not {element.name}")
    low = jax.nn.sigmoid(beta) * jnp.min(w, axis=axes, keepdims=True)
    high = jax.nn.sigmoid(gamma) * jnp.max(w, axis=axes, keepdims=True)
    step = (high - low) / jnp.float32(element.max)
    step = jnp.where(step == 0, jnp.ones_like(step), step)  # a block of zeros
    zero = -round_through(low / step)
    code, top = round_through(w / step) + zero, jnp.float32(element.max)
    # Not jnp.clip: on its ends, where many codes lie, it passes half a gradient.
    code = jnp.where(code < 0, jnp.zeros_like(code), jnp.where(code > top, top, code))
    return (code - zero) * step


@jax.custom_jvp
def round_through(x: Array) -> Array:
    """round(x), ties to even, with derivative 1 (straight-through; arXiv:1308.3432).

    >>> jax.grad(round_through)(0.3)
    Array(1., dtype=float32, weak_type=True)
    """
    return jnp.round(x)


@round_through.defjvp
def _through(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return round_through(primals[0]), tangents[0]
