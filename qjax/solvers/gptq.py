"""GPTQ: quantize one row after the other, each error repaired by the rows still free (catalogue E3).

Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", 2022. With
H = XᵀX + λI and the upper U of H⁻¹ = UᵀU, row k of W [K, N] is rounded to q, e = (w_k - q) / U_kk, and every later row
j gives up U_kj e. The rows of a strip are repaired one by one, the later strips of its block by one matrix product a
strip, all later rows by one a block.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.qarray import Grid, QArray
from qjax.quantization import dequantize, encode, quantize
from qjax.ranges import Range
from qjax.solvers import group_scales
from qjax.solvers.group_scales import Groups, Scales
from qjax.solvers.layer_error import objective

Order = Literal["none", "activation"]
Precision = Literal["float32", "float64"]

RETRIES = 6
# Rows whose errors are sent one by one; few, so that what is read for each row stays in the cache.
STRIP = 16


class Factor(NamedTuple):
    """What GPTQ takes from a Gram matrix; every weight that reads the same input shares it.

    `upper [K, K]`: U with UᵀU = (H + λI)⁻¹, rows and columns in the order of processing. `sequence [K]` int32: the row
    processed at each step. `dead [K]` bool: input channels that were never active, while others were. `damp`: the
    damping that was used, relative to the mean of the diagonal. `fallback`: H is zero, or no damping made it positive
    definite, and U is the identity, with which GPTQ is round to nearest.
    """

    upper: Array
    sequence: Array
    dead: Array
    damp: Array
    fallback: Array


class Carry(NamedTuple):
    """What every processed row k adds to the rows after it, besides its rounding error.

    Row j gets `repaired[k, j]` times the row k that was rounded and `original[k, j]` times the row k as it was given:
    strictly upper matrices [K, K] in the order of processing, of the factor's dtype.
    """

    repaired: Array
    original: Array


class Info(NamedTuple):
    """What GPTQ did to one matrix.

    `damp`: the damping used; `fallback`: whether it is round to nearest; `dead`: number of dead input channels;
    `before`, `after`: tr(EᵀHE) of round to nearest and of GPTQ, on the Gram matrix as given.
    """

    damp: Array
    fallback: Array
    dead: Array
    before: Array
    after: Array


def solve(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    groups: Groups = "static",
    order: Order = "none",
    damp: float = 0.01,
    block: int = 128,
    range: Range | None = None,
    dtype: Precision = "float32",
) -> tuple[QArray, Info]:
    """Quantize `w [K, N]` to `fmt`, blocks along K, so that ‖X(W - Ŵ)‖² is small; `gram [K, K]` is XᵀX.

    Only the direction of `gram` matters: damping is relative (λ = `damp` · mean of the diagonal), raised tenfold up to
    six times while the Cholesky factor is not finite. If it never is, or if the whole Gram matrix is zero (an expert
    that met no token), the result is round to nearest and `Info.fallback` says so. Else channels with a zero on the
    diagonal are dead: their weights are set to zero.

    `groups` says when the scale of a group is fixed, counted from the first of its rows that is processed: "static" on
    the original weights (llm-compressor), "stale" on the weights at the start of that row's block (gptq.py,
    GPTQModel), "fresh" on the weights with all earlier errors repaired. Scales above the group (NVFP4's tensor scale)
    always come from the original weights. `order="activation"` processes rows by falling diagonal of the Gram matrix;
    groups keep their original members, so the result needs no index of groups. `dtype="float64"` runs factor and sweep
    in float64, numbers themselves stay float32; jax's global x64 flag is not touched.

    Weights that read the same input share the factor: call `factor` once, then `sweep` for each.

    Raises:
        ValueError: shapes do not fit, or an option is unknown; the message lists the choices.
    """
    _require(gram.shape == (w.shape[0], w.shape[0]), f"gram has shape {gram.shape}, a weight {w.shape} needs [K, K]")
    factored = factor(gram, damp, order=order, dtype=dtype)
    q, _ = sweep(w, factored, fmt, groups=groups, block=block, range=range)
    before, after = _objectives(w, gram, q, fmt=as_format(fmt), range=range)
    return q, Info(factored.damp, factored.fallback, jnp.sum(factored.dead), before, after)


def factor(gram: Array, damp: float | Array = 0.01, *, order: Order = "none", dtype: Precision = "float32") -> Factor:
    """Factor a Gram matrix `[K, K]` for GPTQ; see `solve` for the options.

    H = R Rᵀ with an upper R is one Cholesky factorization of H read backwards, and U = R⁻¹ then has UᵀU = H⁻¹: no
    inverse of H is formed.

    Raises:
        ValueError: `gram` is not one square matrix, or an option is unknown.
    """
    _require(gram.ndim == 2 and gram.shape[0] == gram.shape[1], f"gram must be one square matrix, got {gram.shape}")
    _require(order in ("none", "activation"), f"order {order!r} is neither 'none' nor 'activation'")
    with precision(dtype):
        return _factor(gram, jnp.asarray(damp, dtype), activation=order == "activation", dtype=dtype)


def sweep(
    w: Array,
    factored: Factor,
    fmt: Format | str,
    *,
    groups: Groups = "static",
    block: int = 128,
    range: Range | None = None,
    grid: Grid | None = None,
    carry: Carry | None = None,
) -> tuple[QArray, Array]:
    """Quantize `w [K, N]` with a factor already made: the QArray and the repaired weights that it rounds, float32.

    Every column of `w` is solved on its own, so weights that share an input and a format without a scale or choice for
    the whole tensor may be joined along N. Runs in the precision of the factor. A `grid` of the format takes the place
    of scales fitted here; `carry` is for methods that repair more than the rounding error
    (`qjax.solvers.asymmetric`).

    Raises:
        ValueError: shapes do not fit, or an option is unknown.
    """
    rows = factored.sequence.shape[0]
    _require(w.ndim == 2 and w.shape[0] == rows, f"a factor of {rows} inputs does not fit a weight of shape {w.shape}")
    _require(groups in group_scales.GROUPS, f"groups {groups!r} is none of {', '.join(group_scales.GROUPS)}")
    _require(block > 0, f"block must be positive, got {block}")
    fmt = as_format(fmt)
    _require(
        fmt.local or groups == "static",
        f"groups {groups!r} refits a group by itself, but a block of {fmt.name} depends on others: use 'static'",
    )
    with precision(str(factored.upper.dtype)):
        return _sweep(w, factored, grid, carry, fmt=fmt, groups=groups, block=block, range=range)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def precision(dtype: str) -> contextlib.AbstractContextManager[object]:
    """float64 exists in jax only while x64 is on; this thread alone sees the switch."""
    _require(dtype in ("float32", "float64"), f"dtype {dtype!r} is neither 'float32' nor 'float64'")
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


@partial(jax.jit, static_argnames=("activation", "dtype"))
def _factor(gram: Array, damp: Array, *, activation: bool, dtype: str) -> Factor:
    rows = gram.shape[0]
    h = gram.astype(dtype)
    diagonal = jnp.diagonal(h)
    silent = diagonal == 0
    alive = jnp.where(silent, jnp.ones_like(diagonal), diagonal)
    nothing = jnp.all(silent)  # says nothing of the channels, so none is dead
    mean = jnp.mean(alive)
    sequence = jnp.argsort(-diagonal, stable=True) if activation else jnp.arange(rows)
    backwards = sequence[::-1]
    h = h + jnp.diag(alive - diagonal)
    h = h[backwards[:, None], backwards[None, :]]
    identity = jnp.eye(rows, dtype=dtype)

    def cholesky(damp: Array) -> Array:
        return lax.linalg.cholesky(h + damp * mean * identity, symmetrize_input=False)

    def retry(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tries, damp, _ = state
        # damp = 0 is a legal start, and ten times nothing is nothing.
        damp = jnp.maximum(damp * 10, jnp.asarray(1e-6, dtype))
        return tries + 1, damp, cholesky(damp)

    def failed(state: tuple[Array, Array, Array]) -> Array:
        tries, _, lower = state
        return (tries < RETRIES) & ~jnp.all(jnp.isfinite(lower))

    _, damp, lower = lax.while_loop(failed, retry, (jnp.int32(0), damp, cholesky(damp)))
    inverse = lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
    fallback = nothing | ~jnp.all(jnp.isfinite(inverse))
    upper = jnp.where(fallback, identity, jnp.triu(inverse[::-1, ::-1]))
    return Factor(upper, sequence.astype(jnp.int32), silent & ~nothing, damp.astype(jnp.float32), fallback)


@partial(jax.jit, static_argnames=("fmt", "groups", "block", "range"))
def _sweep(
    w: Array,
    factored: Factor,
    grid: Grid | None,
    carry: Carry | None,
    *,
    fmt: Format,
    groups: Groups,
    block: int,
    range: Range | None,
) -> tuple[QArray, Array]:
    rows = w.shape[0]
    dtype = factored.upper.dtype
    original = jnp.where(factored.dead[:, None], 0, w.astype(jnp.float32))
    if grid is None:
        scales = group_scales.original(original, fmt, range)
    else:
        scales, groups = group_scales.of_grid(grid, *w.shape), "static"
    count, size = group_scales.count(scales), group_scales.size(scales.grid, rows)
    if count == 1:
        groups = "static"  # one group is opened by the first row of all, when nothing has been repaired yet

    # Steps are positions in the sequence, filled up to whole blocks with rows of zeros that touch nothing.
    block = min(block, rows)
    strip = math.gcd(block, STRIP)
    fill = -rows % block
    position = jnp.arange(rows + fill, dtype=jnp.int32)
    sent = [factored.upper] if carry is None else [factored.upper, -carry.repaired, -carry.original]
    sent = [jnp.pad(part, ((0, fill), (0, fill))) for part in sent]
    pivot = jnp.pad(jnp.diagonal(factored.upper), (0, fill), constant_values=1)
    group = jnp.pad(factored.sequence // size, (0, fill))
    place = jnp.zeros(rows, jnp.int32).at[factored.sequence].set(position[:rows])
    # Rows that fill up the last group are zero (lie nowhere), or its last row again under a minimum: as `fit` pads.
    beyond = place[-1] if fmt.offset in ("minimum", "float_zero") else rows + fill
    members = jnp.pad(place, (0, count * size - rows), constant_values=beyond).reshape(count, size)
    opening = jnp.min(members, axis=1)

    def repair_block(index: Array, state: tuple[Array, Scales]) -> tuple[Array, Scales]:
        work, scales = state
        start = index * block
        # What the rows of this block take from all rows, for each unit of their errors (and of themselves).
        spread = jnp.stack([lax.dynamic_slice_in_dim(part, start, block) for part in sent])
        inner = lax.dynamic_slice_in_dim(spread, start, block, axis=2)
        if groups == "stale":
            opened = (opening >= start) & (opening < start + block)
            scales = group_scales.refit(scales, work[place].astype(jnp.float32), opened, fmt, range)

        def repair_strip(index: Array, state: tuple[Array, Array, Scales]) -> tuple[Array, Array, Scales]:
            """A row takes from every row before it: those of earlier strips by one product for the whole strip."""
            own, known, scales = state
            first = index * strip
            within = lax.dynamic_slice_in_dim(inner, first, strip, axis=2)
            rows = lax.dynamic_slice_in_dim(own, first, strip) - _taken(within, known)
            within = lax.dynamic_slice_in_dim(within, first, strip, axis=1)

            def fresh(recent: Array, number: Array, scales: Scales) -> Scales:
                rows_of_group = members[number]
                current = work.at[rows_of_group].get(mode="fill", fill_value=0)
                share = spread.at[:, :, rows_of_group].get(mode="fill", fill_value=0)
                everything = lax.dynamic_update_slice_in_dim(known, recent, first, axis=1)
                current = current - _taken(share, everything)
                return group_scales.refit_one(scales, current.astype(jnp.float32), number, fmt, range)

            def repair_row(i: Array, state: tuple[Array, Array, Scales]) -> tuple[Array, Array, Scales]:
                rows, recent, scales = state
                position = start + first + i
                # What is known of rows from i on is still zero, so the whole column may be used.
                row = rows[i] - _taken(within[:, :, i], recent)
                number = group[position]
                if groups == "fresh":
                    opens = opening[number] == position
                    scales = lax.cond(opens, partial(fresh, recent, number), lambda scales: scales, scales)
                error = (row - group_scales.nearest(row, scales, number)) / pivot[position]
                learned = error[None] if carry is None else jnp.stack([error, row, given[position]])
                return rows.at[i].set(row), recent.at[:, i].set(learned), scales

            started = rows, _nothing_of(rows, len(sent)), scales
            rows, recent, scales = lax.fori_loop(jnp.int32(0), jnp.int32(strip), repair_row, started)
            own = lax.dynamic_update_slice_in_dim(own, rows, first, 0)
            return own, lax.dynamic_update_slice_in_dim(known, recent, first, axis=1), scales

        own = lax.dynamic_slice_in_dim(work, start, block)
        started = own, _nothing_of(own, len(sent)), scales
        own, known, scales = lax.fori_loop(jnp.int32(0), jnp.int32(block // strip), repair_strip, started)

        def repair_later(index: Array, work: Array) -> Array:
            share = lax.dynamic_slice_in_dim(spread, index * block, block, axis=2)
            rows = lax.dynamic_slice_in_dim(work, index * block, block) - _taken(share, known)
            return lax.dynamic_update_slice_in_dim(work, rows, index * block, 0)

        work = lax.dynamic_update_slice_in_dim(work, own, start, 0)
        return lax.fori_loop(index + 1, blocks, repair_later, work), scales

    given = jnp.pad(original[factored.sequence].astype(dtype), ((0, fill), (0, 0)))
    blocks = jnp.int32((rows + fill) // block)
    work, scales = lax.fori_loop(jnp.int32(0), blocks, repair_block, (given, scales))
    # The sweep keeps the rows it rounded, not their codes: one vectorized pass makes the same codes again.
    repaired = work[place].astype(jnp.float32)
    meta = dataclasses.replace(scales.grid.meta, dtype=str(w.dtype))
    return encode(dataclasses.replace(scales.grid, meta=meta), repaired), repaired


def _nothing_of(rows: Array, parts: int) -> Array:
    """What is known `[parts, rows, N]` of `rows [rows, N]` before the first: zeros, on the devices of these rows.

    Chosen from the rows rather than made like them: jax 0.12 makes zeros on no mesh at all while it traces.
    """
    return jnp.broadcast_to(jnp.where(False, rows, 0), (parts, *rows.shape))


def _taken(shares: Array, known: Array) -> Array:
    """What rows take `[..., N]`, from shares `[parts, rows known, ...]` of what is known `[parts, rows known, N]`."""
    return jnp.tensordot(jnp.moveaxis(shares, (0, 1), (-2, -1)), known, axes=2, precision=lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames=("fmt", "range"))
def _objectives(w: Array, gram: Array, q: QArray, *, fmt: Format, range: Range | None) -> tuple[Array, Array]:
    """tr(EᵀHE) of round to nearest and of `q`, float32."""
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    nearest = dequantize(quantize(w, fmt, axis=-2, range=range))
    return objective(gram, w - nearest), objective(gram, w - dequantize(q).astype(jnp.float32))
