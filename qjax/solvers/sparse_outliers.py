"""SpQR: sparse-quantized representation (Dettmers et al. 2023, arXiv:2306.03078; catalogue E10).

GPTQ with small groups whose scales are themselves quantized, and single outlier weights kept apart. A weight is an
outlier where its squared error over [H⁻¹]_kk exceeds a threshold: in a first look, by how much the group's error falls
when the scales are fitted without it (leave one out), so that outliers do not stretch the group; and finally when its
row is rounded. Outliers are not rounded, so nothing is repaired for them.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators import Permute, Pre, Sparse, Sum
from qjax.operators.sparse import narrowest
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode, quantize
from qjax.ranges import Range
from qjax.solvers import gptq, group_scales
from qjax.solvers.descent import matmul
from qjax.solvers.group_scales import Scales

LARGEST_LEFT_OUT = 128
"""Groups of more rows are fitted with all their weights: leaving one out costs the square of a group."""

TRIES, FILLED = 16, 0.9
"""Thresholds at most, and the share of the outliers allowed that is enough."""


class _Search(NamedTuple):
    """Thresholds so far, one that too many exceed, one that fits and what came of it, and whether that is enough."""

    tries: Array
    low: Array
    high: Array
    threshold: Array
    filled: Array
    q: QArray
    lost: Array


def spqr(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    outliers: float = 0.01,
    order: gptq.Order = "activation",
    damp: float = 1.0,
    range: Range | None = None,
) -> Sum | Pre:
    """`w [K, N]` as `Sum((QArray, Sparse))`, behind a `Permute` with order="activation"; `gram [K, K]` is XᵀX.

    Groups are those of `fmt` in the order of processing; its scales may be a format themselves. The authors give the
    threshold and report the share of outliers; here it is the share, and the threshold is found by bisection, the
    matrix gone through for each: the lowest that no more weights exceed. They are stored as float16 beside their two
    indices.

    Raises:
        ValueError: a share of outliers outside (0, 1).
    """
    count = round(outliers * w.size)
    if not 0 < count < w.size:
        raise ValueError(f"spqr: outliers={outliers} of {w.size} weights; give a share that keeps some and not all")
    f = as_format(fmt)
    return _spqr(w, gram, jnp.float32(damp), fmt=f, count=count, ordered=order == "activation", range=range)


@partial(jax.jit, static_argnames=("fmt", "count", "ordered", "range"))
def _spqr(
    w: Array, gram: Array, damp: Array, *, fmt: Format, count: int, ordered: bool, range: Range | None
) -> Sum | Pre:
    total = len(w)
    w = w.astype(jnp.float32)
    sequence = jnp.argsort(-jnp.diagonal(gram), stable=True) if ordered else jnp.arange(total)
    w, gram = w[sequence], gram[sequence[:, None], sequence[None, :]]
    factored = gptq.factor(gram, damp)
    w = jnp.where(factored.dead[:, None], 0, w)
    scales = group_scales.original(w, fmt, range)
    size = group_scales.size(scales.grid, total)
    groups = -(-total // size)
    fill = groups * size - total
    upper = jnp.pad(factored.upper, ((0, fill), (0, fill)))
    pivots = jnp.pad(jnp.diagonal(factored.upper), (0, fill), constant_values=1)
    rounded = dequantize(quantize(w, fmt, axis=-2, range=range))
    threshold = lax.top_k(jnp.square((w - rounded) / pivots[:total, None]).reshape(-1), count)[0][-1]

    def group(number: Array, state: tuple[Array, Scales], threshold: Array) -> tuple[Array, Scales]:
        work, scales = state
        start = number * size
        spread = lax.dynamic_slice_in_dim(upper, start, size)
        inner = lax.dynamic_slice_in_dim(spread, start, size, axis=1).T
        own, pivot = lax.dynamic_slice_in_dim(work, start, size), lax.dynamic_slice_in_dim(pivots, start, size)
        kept = jnp.zeros(own.shape, bool)
        if 1 < size <= LARGEST_LEFT_OUT:
            kept = _left_out(own, pivot, fmt, range) > threshold
        middle = jnp.sum(jnp.where(kept, 0, own), axis=0) / jnp.maximum(jnp.sum(~kept, axis=0).astype(own.dtype), 1)
        fitted = jnp.where(kept, middle[None], own)
        scales = group_scales.refit_one(scales, fitted, number, fmt, range)

        def row(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            own, errors = state
            row = own[i] - matmul(inner[i], errors)
            error = (row - group_scales.nearest(row, scales, number)) / pivot[i]
            return own.at[i].set(row), errors.at[i].set(jnp.where(error * error > threshold, 0, error))

        own, errors = lax.fori_loop(jnp.int32(0), jnp.int32(size), row, (own, jnp.zeros_like(own)))
        return lax.dynamic_update_slice_in_dim(work - matmul(spread.T, errors), own, start, 0), scales

    def through(threshold: Array) -> tuple[QArray, Array]:
        """The codes, and what each weight, repaired by then, lacks in them."""
        start = jnp.pad(w, ((0, fill), (0, 0))), scales
        work, fitted = lax.fori_loop(jnp.int32(0), jnp.int32(groups), partial(group, threshold=threshold), start)
        q = encode(fitted.grid, work[:total])
        return q, work[:total] - dequantize(q)

    def cost(lost: Array) -> Array:
        return jnp.square(lost / pivots[:total, None]).reshape(-1)

    def bisected(state: _Search) -> _Search:
        # What exceeds the threshold and is not stored would be an error that nothing was repaired for.
        q, lost = through(state.threshold)
        number = jnp.sum(cost(lost) > state.threshold)
        fits = number <= count
        low = jnp.where(fits, state.low, state.threshold)
        high = jnp.where(fits, state.threshold, state.high)
        following = jnp.where(jnp.isinf(high), 2 * low, jnp.where(low == 0, high / 2, jnp.sqrt(low * high)))
        best = jax.tree.map(lambda new, old: jnp.where(fits, new, old), (q, lost), (state.q, state.lost))
        return _Search(state.tries + 1, low, high, following, fits & (number >= round(FILLED * count)), *best)

    # Should none fit, it is rounding to nearest without outliers.
    nearest = encode(scales.grid, w), jnp.zeros_like(w)
    none = _Search(jnp.int32(0), jnp.float32(0), jnp.float32(jnp.inf), threshold, jnp.bool_(False), *nearest)
    found = lax.while_loop(lambda s: ~s.filled & (s.tries < TRIES), bisected, none)
    op = Sum((found.q, _outliers(found.lost, cost(found.lost), found.high, count)))
    return Pre(Permute(sequence.astype(narrowest(total))), op) if ordered else op


def _left_out(group: Array, pivot: Array, fmt: Format, range: Range | None) -> Array:
    """By how much the group's weighted squared error falls if the scales need not serve one weight; like `group`."""
    size = len(group)
    others = ~jnp.eye(size, dtype=bool)
    neighbour = jnp.roll(group, 1, axis=0)

    def error(x: Array, counted: Array) -> Array:
        lost = (x - dequantize(quantize(x, _plain(fmt), axis=-2, range=range))) / pivot[:, None]
        return jnp.sum(jnp.where(counted[:, None], lost * lost, 0), axis=0)

    # A weight that is left out takes its neighbour's value, which widens no range.
    without = jax.vmap(lambda counted: error(jnp.where(counted[:, None], group, neighbour), counted))(others)
    return error(group, jnp.ones(size, bool))[None] - without


def _plain(fmt: Format) -> Format:
    """The format with unquantized scales: one group alone has no outer level."""
    return dataclasses.replace(fmt, scale="float32") if isinstance(fmt.scale, Format) else fmt


def _outliers(lost: Array, cost: Array, threshold: Array, count: int) -> Sparse:
    """What the outliers lack; no more than `count`, those of largest cost."""
    found, flat = lax.top_k(jnp.where(cost > threshold, cost, 0), count)
    values = jnp.where(found > 0, jnp.take(lost.reshape(-1), flat), 0)
    rows, columns = lost.shape
    limit = float(jnp.finfo(jnp.float16).max)
    return Sparse(
        jnp.clip(values, -limit, limit).astype(jnp.float16),
        (flat // columns).astype(narrowest(rows)),
        (flat % columns).astype(narrowest(columns)),
        (rows, columns),
    )
