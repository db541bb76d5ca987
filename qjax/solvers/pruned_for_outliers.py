"""Outliers at twice the bits in the place of pruned neighbours: MicroScopiQ (catalogue G29).

Ramachandran et al., "MicroScopiQ: accelerating foundational models through outlier-aware microscaling quantization",
2024 (arXiv:2411.05282). A block of weights shares a power of two, which fits those that are no outliers; what lies
beyond three standard deviations of the block is an outlier. In each micro-block of a few weights, as many of the least
important others are pruned as there are outliers, whose second halves then lie in their places; outliers share a scale
of their own in each micro-block. Weights are rounded as in GPTQ, row by row, and later rows repair what rounding and
pruning lose. The importance of a weight is w²/U_kk², with GPTQ's U.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import encode
from qjax.solvers import group_scales
from qjax.solvers.descent import matmul
from qjax.solvers.gptq import Factor
from qjax.solvers.group_scales import Scales

INLIER, OUTLIER, PRUNED = 0, 1, 2


@partial(jax.jit, static_argnames=("fmt", "wide", "deviations"))
def prune_for_outliers(
    w: Array, factored: Factor, *, fmt: Format, wide: Format, deviations: float = 3.0
) -> tuple[QArray, Array, Array]:
    """`w [K, N]` as inliers in `fmt`, outliers `[K, N]` rounded to `wide` and 0 elsewhere, and the roles int8 `[K, N]`.

    The blocks of `fmt` and the micro-blocks of `wide` lie along K and divide it; both formats have no offset. Inliers
    hold 0 where a weight is an outlier or pruned. `factored` is of natural order. Roles and scales of a block are those
    of its weights with all earlier errors repaired.
    """
    w = jnp.where(factored.dead[:, None], 0, w.astype(jnp.float32))
    upper, pivots = factored.upper.astype(jnp.float32), jnp.diagonal(factored.upper).astype(jnp.float32)
    scales = group_scales.original(w, fmt, None)
    size = group_scales.size(scales.grid, len(w))

    def block(number: Array, state: tuple[Array, Array, Array, Scales]) -> tuple[Array, Array, Array, Scales]:
        work, used, kinds, scales = state
        start = number * size
        spread = lax.dynamic_slice_in_dim(upper, start, size)
        inner = lax.dynamic_slice_in_dim(spread, start, size, axis=1).T
        own, pivot = (lax.dynamic_slice_in_dim(x, start, size) for x in (work, pivots))
        kind = roles(own, pivot, wide.block, deviations)
        scales = group_scales.refit_one(scales, jnp.where(kind == INLIER, own, 0), number, fmt, None)
        apart = group_scales.original(jnp.where(kind == OUTLIER, own, 0), wide, None)

        def row(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            own, errors, values = state
            row = own[i] - matmul(inner[i], errors)
            near = group_scales.nearest(row, scales, number)
            far = group_scales.nearest(row, apart, i // wide.block)
            value = jnp.where(kind[i] == INLIER, near, jnp.where(kind[i] == OUTLIER, far, 0))
            return own.at[i].set(row), errors.at[i].set((row - value) / pivot[i]), values.at[i].set(value)

        started = own, jnp.zeros_like(own), jnp.zeros_like(own)
        own, errors, values = lax.fori_loop(jnp.int32(0), jnp.int32(size), row, started)
        work = lax.dynamic_update_slice_in_dim(work - matmul(spread.T, errors), own, start, 0)
        used = lax.dynamic_update_slice_in_dim(used, values, start, 0)
        return work, used, lax.dynamic_update_slice_in_dim(kinds, kind, start, 0), scales

    state = w, jnp.zeros_like(w), jnp.zeros(w.shape, jnp.int8), scales
    work, used, kinds, scales = lax.fori_loop(jnp.int32(0), jnp.int32(len(w) // size), block, state)
    q = encode(scales.grid, jnp.where(kinds == INLIER, work, 0))
    return q, jnp.where(kinds == OUTLIER, used, 0), kinds


def roles(w: Array, pivot: Array, micro: int, deviations: float) -> Array:
    """Which of the weights `[block, N]` are outliers and which are pruned for them, int8.

    An outlier lies more than `deviations` standard deviations of its column from its mean; a micro-block of `micro` has
    at most half as many, the largest, and prunes as many of the others, those of least |w| / `pivot [block]`.

    >>> w = jnp.array([1.0, -2.0, 3.0, 50.0, 1.0, -2.0, 2.0, 3.0])[:, None]
    >>> roles(w, jnp.ones(8), 4, 2.0)[:, 0].tolist()
    [2, 0, 0, 1, 0, 0, 0, 0]
    """
    far = jnp.abs(w - jnp.mean(w, axis=0, keepdims=True)) > deviations * jnp.std(w, axis=0, keepdims=True)
    far, w = far.reshape(-1, micro, w.shape[1]), w.reshape(-1, micro, w.shape[1])
    outlier = far & (_rank(jnp.where(far, -jnp.abs(w), jnp.inf)) < micro // 2)
    importance = jnp.abs(w) / pivot.reshape(-1, micro, 1)
    pruned = _rank(jnp.where(outlier, jnp.inf, importance)) < jnp.sum(outlier, axis=1, keepdims=True)
    kind = jnp.where(outlier, OUTLIER, jnp.where(pruned, PRUNED, INLIER))
    return kind.astype(jnp.int8).reshape(-1, w.shape[2])


def _rank(x: Array) -> Array:
    """The place of each number along the second axis, from the smallest."""
    return jnp.argsort(jnp.argsort(x, axis=1, stable=True), axis=1)
