"""OBQ: optimal brain quantization, the exact greedy order (Frantar and Alistarh 2022, arXiv:2208.11580; E2).

Each column of W [K, N] for itself: of its free weights the one with the smallest

    (q(w_k) - w_k)² / [H⁻¹]_kk

is rounded, the free ones move by -(w_k - q(w_k)) / [H⁻¹]_kk · H⁻¹_{:,k}, and row and column k leave H⁻¹ by one step of
Gaussian elimination. Weights beyond the grid by more than half a step are taken first (the paper's section 5). GPTQ is
this with one order for all columns; here every column has its own, at a cost of N·K³: for small matrices.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.qarray import QArray
from qjax.quantization import decode_with, encode, encode_with
from qjax.ranges import Range
from qjax.solvers import group_scales


def obq(
    w: Array, gram: Array, fmt: Format | str, *, damp: float = 0.01, range: Range | None = None, columns: int = 16
) -> QArray:
    """Quantize `w [K, N]` to `fmt`, scales from the original weights; `gram [K, K]` is XᵀX.

    Damping is relative to the mean of the diagonal; inputs that are never active are set to zero. `columns` are solved
    side by side, each with its own inverse [K, K].
    """
    return _obq(w, gram, jnp.float32(damp), fmt=as_format(fmt), range=range, columns=columns)


@partial(jax.jit, static_argnames=("fmt", "range", "columns"))
def _obq(w: Array, gram: Array, damp: Array, *, fmt: Format, range: Range | None, columns: int) -> QArray:
    total = w.shape[0]
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    w = jnp.where(dead[:, None], 0, w.astype(jnp.float32))
    gram = gram.astype(jnp.float32) + jnp.diag(jnp.where(dead, 1, damp * jnp.mean(jnp.where(dead, 1, diagonal))))
    inverse = jnp.linalg.inv(gram)
    scales = group_scales.original(w, fmt, range)
    meta = scales.grid.meta
    step, offset, table = (
        None if part is None else jnp.broadcast_to(part, (total, w.shape[1], *part.shape[2:]))
        for part in group_scales.of_rows(scales, total)
    )
    levels = jnp.asarray(meta.element.levels(), jnp.float32) if table is None else table
    # Half the widest gap between levels: farther from its rounded value is only what lies beyond the grid.
    reach = 0.5 * (1 if step is None else jnp.abs(step)) * jnp.max(jnp.diff(levels, axis=-1), axis=-1)

    def solve(column: tuple[Array, Array, tuple[Array | None, Array | None, Array | None]]) -> Array:
        """The column as each weight was when its turn came."""
        w, reach, parts = column

        def turn(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            w, inverse, free = state
            codes = encode_with(meta, w, *parts)
            error = w - decode_with(meta, codes, *parts)
            pivots = jnp.diagonal(inverse)
            cost = jnp.where(jnp.abs(error) > reach * (1 + 1e-6), 0, error * error / jnp.where(free, pivots, 1))
            k = jnp.argmin(jnp.where(free, cost, jnp.inf))
            line = jnp.where(free, inverse[k], 0) / pivots[k]
            # Its own value stays as it is rounded; the inverse loses its row and column.
            w = jnp.where(jnp.arange(total) == k, w, w - error[k] * line)
            inverse = inverse - jnp.outer(inverse[:, k], line)
            return w, inverse, free & (jnp.arange(total) != k)

        return lax.fori_loop(0, total, turn, (w, inverse, jnp.ones(total, bool)))[0]

    reach = jnp.broadcast_to(reach, w.shape)
    columnwise = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (w, reach, (step, offset, table)))
    repaired = lax.map(solve, columnwise, batch_size=min(columns, w.shape[1]))
    return encode(scales.grid, repaired.T)
