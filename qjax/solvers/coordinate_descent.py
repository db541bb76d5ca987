"""QuantEase: cyclic coordinate descent on the layer's error (Behdin et al. 2023, arXiv:2309.01885; catalogue E6).

Row k of Ŵ [K, N] goes to the value of the grid nearest to its minimizer given all other rows (the paper's Lemma 1),

    β_k = ŵ_k + [H(W - Ŵ)]_k / H_kk,   H = XᵀX,

over and over; only products with H, no inverse. The outlier-aware variant (its Algorithm 3) keeps a sparse S beside
Ŵ and takes a gradient step in it, cut to its s largest entries, after each sweep.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators import Sparse, Sum
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode
from qjax.ranges import Range
from qjax.solvers import descent, gptq, group_scales
from qjax.solvers.descent import Point
from qjax.solvers.nearest import rtn

Start = Literal["weights", "nearest", "gptq"]


def quantease(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    sweeps: int = 25,
    start: Start = "weights",
    relax: int = 3,
    outliers: float = 0.0,
    block: int = 128,
    range: Range | None = None,
) -> QArray | Sum:
    """Quantize `w [K, N]` to `fmt` by `sweeps` of coordinate descent; `gram [K, K]` is XᵀX.

    `start` is the first Ŵ: the weights themselves (the authors'), rounded, or GPTQ's result. Every `relax`-th sweep
    from the second on, but never the last, leaves the rows where their minimizers are (the authors' 3; 0 for never).
    Without relaxation and from a start on the grid the objective never rises. A share of `outliers` of all entries is
    kept apart in bfloat16: then the result is `Sum((QArray, Sparse))`.

    Raises:
        ValueError: an unknown start, no sweep, or a share of outliers outside [0, 1).
    """
    if start not in ("weights", "nearest", "gptq") or sweeps < 1 or not 0 <= outliers < 1:
        raise ValueError(
            f"quantease: start={start!r}, sweeps={sweeps}, outliers={outliers}; start from 'weights', 'nearest' or "
            "'gptq', with at least one sweep and a share of outliers in [0, 1)"
        )
    count = round(outliers * w.size)
    f = as_format(fmt)
    turns = jnp.int32(sweeps), jnp.int32(relax)
    return _quantease(w, gram, *turns, fmt=f, start=start, count=count, block=block, range=range)


@partial(jax.jit, static_argnames=("fmt", "start", "count", "block", "range"))
def _quantease(
    w: Array,
    gram: Array,
    sweeps: Array,
    relax: Array,
    *,
    fmt: Format,
    start: Start,
    count: int,
    block: int,
    range: Range | None,
) -> QArray | Sum:
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    sparse = _largest(w, count)
    rest = w - sparse
    scales = group_scales.original(rest, fmt, range)
    size = group_scales.size(scales.grid, len(w))
    if start == "weights":
        values = rest
    else:
        nearest = start == "nearest"
        first = rtn(rest, fmt, range=range) if nearest else gptq.sweep(rest, gptq.factor(gram), fmt, range=range)[0]
        values = dequantize(first)
    # The largest eigenvalue, by power iteration; half a step of 1/λ is safe where the iteration falls short.
    step = 0.5 / jnp.maximum(_largest_eigenvalue(gram), jnp.finfo(jnp.float32).tiny)

    def sweep(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        values, sparse = state
        relaxed = (relax > 0) & (i % jnp.maximum(relax, 1) == 1) & (i < sweeps - 1)

        def round_row(row: Array, number: Array, position: Array) -> Array:
            return jnp.where(relaxed, row, group_scales.nearest(row, scales, number))

        point: Point = descent.rows(descent.at(w - sparse, values, gram), gram, size, round_row, block=block)
        return point.values, _largest(sparse + step * point.residual, count)

    values, sparse = lax.fori_loop(jnp.int32(0), sweeps, sweep, (values, sparse))
    q = encode(scales.grid, values)
    if not count:
        return q
    kept = Sparse.largest(sparse, count)
    return Sum((q, Sparse(kept.values.astype(jnp.bfloat16), kept.ins, kept.outs, kept.size)))


def _largest(x: Array, count: int) -> Array:
    """`x [K, N]` with all but its `count` largest entries set to zero."""
    if not count:
        return jnp.zeros_like(x)
    return Sparse.largest(x, count).affine()[0]


def _largest_eigenvalue(gram: Array, steps: int = 30) -> Array:
    def turn(_: Array, v: Array) -> Array:
        v = descent.matmul(gram, v)
        return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(jnp.float32).tiny)

    v = lax.fori_loop(0, steps, turn, jnp.ones(len(gram), jnp.float32))
    return v @ descent.matmul(gram, v)
