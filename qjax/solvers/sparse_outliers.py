"""SpQR: sparse-quantized representation (Dettmers et al. 2023, arXiv:2306.03078; catalogue E10).

GPTQ with small groups whose scales are themselves quantized, and single outlier weights kept apart. A weight is an
outlier where its squared error over [H⁻¹]_kk exceeds a threshold: in a first look, by how much the group's error falls
when the scales are fitted without it (leave one out), so that outliers do not stretch the group; and finally when its
row is rounded. Outliers are not rounded, so nothing is repaired for them.
"""

from __future__ import annotations

import dataclasses
from functools import partial

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

    Groups are those of `fmt` in the order of processing; its scales may be a format themselves. The threshold is set
    so that about a share `outliers` of the weights exceeds it (the authors give the threshold and report the share);
    never more are stored, as float16 beside their two indices.

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

    def group(number: Array, state: tuple[Array, Scales]) -> tuple[Array, Scales]:
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

    work = jnp.pad(w, ((0, fill), (0, 0)))
    work, scales = lax.fori_loop(jnp.int32(0), jnp.int32(groups), group, (work, scales))
    q = encode(scales.grid, work[:total])
    op = Sum((q, _outliers(work[:total], q, pivots[:total], threshold, count)))
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


def _outliers(repaired: Array, q: QArray, pivots: Array, threshold: Array, count: int) -> Sparse:
    """What the `count` largest outliers lack in `q`."""
    lost = repaired - dequantize(q)
    cost = jnp.square(lost / pivots[:, None])
    found, flat = lax.top_k(jnp.where(cost > threshold, cost, 0).reshape(-1), count)
    values = jnp.where(found > 0, jnp.take(lost.reshape(-1), flat), 0)
    rows, columns = lost.shape
    limit = float(jnp.finfo(jnp.float16).max)
    return Sparse(
        jnp.clip(values, -limit, limit).astype(jnp.float16),
        (flat // columns).astype(narrowest(rows)),
        (flat % columns).astype(narrowest(columns)),
        (rows, columns),
    )
