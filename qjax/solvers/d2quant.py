"""A second scale, one for each input channel, beside the scales of the format (D²Quant's dual-scale quantizer).

Yan et al., "D²Quant: accurate low-bit post-training weight quantization for LLMs", 2026 (arXiv:2602.02546; catalogue
E14): Ŵ = diag(c) Q, Q in the format and c by least squares, in turns. c belongs to the input of the layer, so whatever
produces that input can absorb it: for a gated block's down projection, the up projection.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.quantization import dequantize
from qjax.solvers.nearest import rtn


class DualScale(NamedTuple):
    """The best of all steps.

    `scale [K]`: c with W ≈ diag(c) Q(diag(c)⁻¹ W); `errors [steps + 1]`: ‖W - Ŵ‖² of rounding alone, then of each step.
    """

    scale: Array
    errors: Array


def dual_scale(w: Array, fmt: Format | str, *, steps: int = 15) -> DualScale:
    """Fit the input scale of `w [K, N]` for rounding to nearest in `fmt`.

    It begins at the mean |w| of each channel; c_k = <w_k, q_k> / <q_k, q_k> where q_k is not zero. Its overall size is
    the format's to choose: c is divided by its mean. A channel of zeros keeps 1.
    """
    return _dual_scale(w, fmt=as_format(fmt), steps=steps)


@partial(jax.jit, static_argnames=("fmt", "steps"))
def _dual_scale(w: Array, *, fmt: Format, steps: int) -> DualScale:
    w = w.astype(jnp.float32)

    def normal(c: Array) -> Array:
        return c / jnp.mean(c)

    def rounded(c: Array) -> Array:
        return dequantize(rtn(w / c[:, None], fmt))

    size = jnp.mean(jnp.abs(w), axis=1)
    start = normal(jnp.where(size > 0, size, jnp.where(jnp.any(size > 0), jnp.mean(size), 1)))

    def step(state: tuple[Array, Array, Array], turn: Array) -> tuple[tuple[Array, Array, Array], Array]:
        c, least, best = state
        q = rounded(c)
        error = jnp.sum((w - c[:, None] * q) ** 2)
        best = jnp.where(error < least, c, best)
        size = jnp.sum(q * q, axis=1)
        fitted = jnp.abs(jnp.sum(w * q, axis=1)) / jnp.where(size > 0, size, 1)
        c = jnp.where(turn == 0, start, normal(jnp.where(fitted > 0, fitted, c)))
        return (c, jnp.minimum(error, least), best), error

    ones = jnp.ones(w.shape[0], jnp.float32)
    (_, _, best), errors = lax.scan(step, (ones, jnp.float32(jnp.inf), ones), jnp.arange(steps + 1))
    return DualScale(best, errors)
