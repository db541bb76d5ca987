"""GPFQ and SPFQ: greedy path following (catalogue D12).

Zhang, Zhou, Saab 2022 (arXiv:2201.11113) and Zhang, Saab 2023 (arXiv:2309.10975). A neuron's output is followed along
its inputs: with u_0 = 0, row t of W [K, N] becomes

    q_t = Q(⟨x̃_t, u_{t-1} + w_t x_t⟩ / ‖x̃_t‖²),   u_t = u_{t-1} + w_t x_t - q_t x̃_t,

where x_t, x̃_t are input t over all samples in the float and in the quantized network. In Gram matrices that is one
sweep of coordinate descent from Ŵ = 0 towards the lower triangle of X̃ᵀX times W. SPFQ rounds stochastically.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.qarray import QArray
from qjax.quantization import decode_with, encode, encode_with
from qjax.ranges import Range
from qjax.rounding import stochastic
from qjax.solvers import descent, group_scales
from qjax.solvers.descent import Point


def gpfq(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    cross_gram: Array | None = None,
    key: Array | None = None,
    block: int = 128,
    range: Range | None = None,
) -> QArray:
    """Quantize `w [K, N]` to `fmt` along its inputs; `gram [K, K]` is X̃ᵀX̃, `cross_gram` X̃ᵀX (by default the same).

    With a `key` rows are rounded stochastically (SPFQ), up or down so that the expectation is exact. Inputs that are
    never active take their weight rounded to nearest.
    """
    return _gpfq(w, gram, gram if cross_gram is None else cross_gram, key, fmt=as_format(fmt), block=block, range=range)


@partial(jax.jit, static_argnames=("fmt", "block", "range"))
def _gpfq(
    w: Array, gram: Array, cross: Array, key: Array | None, *, fmt: Format, block: int, range: Range | None
) -> QArray:
    w, gram, cross = (x.astype(jnp.float32) for x in (w, gram, cross))
    scales = group_scales.original(w, fmt, range)
    meta = scales.grid.meta
    dead = (jnp.diagonal(gram) <= 0)[:, None]

    def round_row(row: Array, number: Array, position: Array) -> Array:
        if key is None:
            return group_scales.nearest(row, scales, number)
        parts = group_scales.of(scales, number)
        codes = encode_with(meta, row, *parts, rounding=stochastic(jax.random.fold_in(key, position)))
        return decode_with(meta, codes, *parts)

    start = Point(jnp.where(dead, w, 0), descent.matmul(jnp.tril(cross), w))
    point = descent.rows(start, gram, group_scales.size(scales.grid, len(w)), round_row, block=block)
    return encode(scales.grid, point.values)
