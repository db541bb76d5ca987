"""SqueezeLLM: tables fitted where the loss is sensitive, single weights apart (Kim et al. 2024, arXiv:2306.07629; E11).

To second order the loss grows by Σ F_kn (w_kn - ŵ_kn)², F its Hessian's diagonal; so every output's table of 2^b
values is the k-means of its weights, each counted F times (the paper's eq. 4). Before that the weights of largest
magnitude and the most sensitive ones leave for a sparse part, where they neither stretch the table nor are rounded
(section 4.2).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.codebooks.kmeans import kmeans
from qjax.coding import encode
from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.formats.table import Table
from qjax.operators.sum import Sum
from qjax.quantization import dequantize, fit
from qjax.solvers.outliers import split


def squeezellm(
    w: Array,
    sensitivity: Array,
    fmt: Format | str,
    *,
    outliers: float = 0.004,
    sensitive: float = 0.0005,
    iterations: int = 50,
) -> Sum:
    """`w [K, N]` as `Sum((QArray, Sparse))`: a float16 table of 2^b values for every block of `fmt`, and entries apart.

    `sensitivity [K, N]`: the Fisher diagonal (`qjax.fisher`); or `[K, 1]`, the diagonal of XᵀX, the Hessian of the
    layer's own error. Of `fmt` the bits and blocks count, by default of an integer a table for each output. A share
    `outliers` of the largest |w| is stored apart as float16, and a share `sensitive` of the largest F·w². (The authors
    rank by F alone, which for a diagonal of XᵀX would take whole channels.)

    Raises:
        ValueError: shares outside [0, 1), or that sum to no weight at all; a sensitivity of another shape.
    """
    count, more = (round(share * w.size) for share in (outliers, sensitive))
    if not (0 <= outliers < 1 and 0 <= sensitive < 1 and 0 < count + more < w.size):
        raise ValueError(f"squeezellm: shares {outliers} and {sensitive} of {w.size} weights; give some and leave some")
    if sensitivity.shape not in (w.shape, (w.shape[0], 1)):
        raise ValueError(f"squeezellm: a sensitivity {sensitivity.shape} for a weight {w.shape}; give [K, N] or [K, 1]")
    return _squeezellm(w, sensitivity, fmt=tabulated(as_format(fmt), iterations), largest=count, sensitive=more)


@partial(jax.jit, static_argnames=("fmt", "largest", "sensitive"))
def _squeezellm(w: Array, sensitivity: Array, *, fmt: Format, largest: int, sensitive: int) -> Sum:
    x = w.astype(jnp.float32)
    share = jnp.broadcast_to(sensitivity.astype(jnp.float32), x.shape)
    share = share / jnp.where(jnp.max(share) > 0, jnp.max(share), jnp.float32(1))
    first = lax.top_k(jnp.abs(x).reshape(-1), largest)[1]
    score = (share * x * x).reshape(-1).at[first].set(jnp.inf)
    apart = jnp.zeros(x.size, bool).at[lax.top_k(score, largest + sensitive)[1]].set(True).reshape(x.shape)
    # A weight that the loss never felt still has a place: as small a share as float32 sums can tell from none.
    share = jnp.where(apart, jnp.float32(0), jnp.maximum(share, jnp.float32(1e-6)))
    grid = fit(x, fmt, axis=-2, weights=share)
    assert grid.table is not None
    stored = grid.table.astype(jnp.float16)
    meta = dataclasses.replace(grid.meta, dtype=str(w.dtype))
    q = encode(dataclasses.replace(grid, table=stored.astype(jnp.float32), meta=meta), x)
    q = dataclasses.replace(q, table=stored)
    rest = x - dequantize(q).astype(jnp.float32)
    return Sum((q, split(rest, apart.astype(jnp.float32), largest + sensitive, "float16")[1]))


def tabulated(fmt: Format, iterations: int) -> Format:
    """The format of fitted tables with the bits and blocks of another, and no scale."""
    values = tuple(np.linspace(-1, 1, 2**fmt.element.bits).tolist())
    table = Table(f"clusters{fmt.element.bits}", values)
    return Format(table, fmt.block, fmt.across, scale=None, levels=kmeans(iterations))
