"""y[:, j] = x[:, ids[j]] for columns of bytes: the rows that an embedding takes of a packed weight [K, N], on TPUs.

N lies along the lanes there, where XLA gathers nothing: it turns the whole table over first, at every call. Here the
ids come ahead of the grid, and for each the one tile of 128 columns that holds it is copied; its lane is turned to
where the result wants it. That reads 128 columns for one: little beside a vocabulary, while ids are few (`prefer`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu.tiles import LANES

SUBLANES = 32  # of bytes in one tile of registers
DEEPEST = 1 << 14  # rows that vector memory has room for, two blocks of x and two of y
STEP = 1 << 18  # bytes that v6e moves while a short column is waited for, by libtpu's estimate


def refuse(rows: int, N: int, dtype: Any) -> str | None:
    """Why the kernel cannot take columns of x [rows, N], or None."""
    if jnp.dtype(dtype).itemsize != 1 or (jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8):
        return f"columns of {jnp.dtype(dtype)} are not of bytes"
    if N % LANES:
        return f"{N} columns are no multiple of {LANES}"
    return f"{rows} rows are no multiple of {SUBLANES} up to {DEEPEST}" if rows % SUBLANES or rows > DEEPEST else None


def prefer(rows: int, N: int, m: int) -> bool:
    """Whether m columns of x [rows, N] come sooner so than by XLA, which reads and writes all of x."""
    return m * max(rows * LANES, STEP) <= 2 * rows * N


def take(x: jax.Array, ids: jax.Array, interpret: Any = False) -> jax.Array:
    """Columns ids [m] int32 of x [rows, N], bytes, in their order: [rows, m]. Ids are clipped to 0..N - 1.

    ValueError for what does not fit.
    """
    (rows, N), (m,) = x.shape, ids.shape
    why = refuse(rows, N, x.dtype)
    if why is not None:
        raise ValueError(why)
    if m == 0:
        return jnp.zeros((rows, 0), x.dtype)
    few = min(m, LANES)  # columns of a block of the result that are filled
    blocks = -(-m // few)
    ids = jnp.pad(jnp.clip(ids.astype(jnp.int32), 0, N - 1), (0, blocks * few - m), mode="edge")
    call = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(blocks, few),
            in_specs=[pl.BlockSpec((rows, LANES), lambda i, j, ids: (0, lax.div(ids[i * few + j], LANES)))],
            out_specs=pl.BlockSpec((rows, LANES), lambda i, j, ids: (0, i)),
        ),
        out_shape=jax.ShapeDtypeStruct((rows, blocks * LANES), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        name="column_gather",
        interpret=interpret,
    )
    return call(ids, x)[:, :m]


def _kernel(ids_ref: Any, x_ref: Any, y_ref: Any) -> None:
    """One column: words of four rows, the lane of the id turned to the lane of the result."""
    j = pl.program_id(1)
    lane = lax.rem(ids_ref[pl.program_id(0) * pl.num_programs(1) + j], LANES)
    words = pltpu.bitcast(x_ref[...], jnp.int32)
    turned = pltpu.roll(words, lax.rem(j - lane + LANES, LANES), 1)
    here = lax.broadcasted_iota(jnp.int32, words.shape, 1) == j

    @pl.when(j == 0)
    def _() -> None:
        y_ref[...] = pltpu.bitcast(turned, y_ref.dtype)

    @pl.when(j > 0)
    def _() -> None:
        y_ref[...] = pltpu.bitcast(jnp.where(here, turned, pltpu.bitcast(y_ref[...], jnp.int32)), y_ref.dtype)


def reference(x: jax.Array, ids: jax.Array) -> jax.Array:
    """What `take` computes, by XLA."""
    return jnp.take(x, jnp.clip(ids, 0, x.shape[1] - 1), axis=1)
