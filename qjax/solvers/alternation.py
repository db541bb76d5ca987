"""Scales and codes in turns: alternating least squares, and decoupleQ (Guo et al. 2024, arXiv:2404.12759; E13).

Both minimize ‖X(W - Ŵ)‖² over codes and, separately, over the scale and offset of every group, Ŵ = s·q + z. For fixed
codes that is least squares (`descent.scales`); for fixed scales the codes are found row by row (`descent.rows`), or,
in decoupleQ, by GPTQ on the scales as they stand (the authors' `round_fn="gptq"`, their default for language models).
A step is kept, column by column, only where it lowers the objective.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode
from qjax.ranges import Range
from qjax.solvers import descent, gptq, group_scales
from qjax.solvers.descent import Point
from qjax.solvers.group_scales import Scales
from qjax.solvers.nearest import rtn

State = tuple[Point, Scales]


def alternating(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    rounds: int = 5,
    start: Literal["nearest", "gptq"] = "gptq",
    block: int = 128,
    range: Range | None = None,
) -> QArray:
    """Quantize `w [K, N]` to `fmt`: `rounds` times the scales given the codes, then the codes given the scales.

    `gram [K, K]` is XᵀX; the objective never rises above that of the `start`. Formats without scales keep their grid.

    Raises:
        ValueError: an unknown start, or a negative number of rounds.
    """
    if start not in ("nearest", "gptq") or rounds < 0:
        raise ValueError(f"alternating: start={start!r}, rounds={rounds}; start from 'nearest' or 'gptq'")
    return _alternating(w, gram, jnp.int32(rounds), fmt=as_format(fmt), start=start, block=block, range=range)


@partial(jax.jit, static_argnames=("fmt", "start", "block", "range"))
def _alternating(w: Array, gram: Array, rounds: Array, *, fmt: Format, start: str, block: int, range: Any) -> QArray:
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    if start == "nearest":
        first = rtn(w, fmt, range=range)
    else:
        first, _ = gptq.sweep(w, gptq.factor(gram), fmt, block=block, range=range)
    scales = group_scales.of_grid(first.grid, *w.shape)

    def turn(_: Array, state: State) -> State:
        point, scales = _refit(state, gram, fmt)
        size = group_scales.size(scales.grid, len(w))
        point = descent.rows(
            point, gram, size, lambda row, number, position: group_scales.nearest(row, scales, number), block=block
        )
        return descent.at(w, point.values, gram), scales

    state = descent.at(w, dequantize(first), gram), scales
    point, scales = lax.fori_loop(jnp.int32(0), rounds, turn, state)
    return encode(scales.grid, point.values)


def decoupleq(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    rounds: int = 4,
    refits: int = 3,
    order: gptq.Order = "activation",
    damp: float = 0.01,
    block: int = 128,
    range: Range | None = None,
) -> QArray:
    """Quantize `w [K, N]` to `fmt` by decoupleQ; `gram [K, K]` is XᵀX, damped once by `damp` of its mean diagonal.

    Starts rounded to nearest; then `rounds` times GPTQ on the scales found so far, and `refits` passes of least
    squares over the groups' scales and offsets. What is final is never worse than round to nearest or GPTQ by the
    damped objective. The authors' zeros are floats: formats with offset "minimum" keep them so.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1 or refits < 0:
        raise ValueError(f"decoupleq: rounds={rounds}, refits={refits}; give at least one round")
    turns = jnp.int32(rounds), jnp.int32(refits), jnp.float32(damp)
    return _decoupleq(w, gram, *turns, fmt=as_format(fmt), order=order, block=block, range=range)


@partial(jax.jit, static_argnames=("fmt", "order", "block", "range"))
def _decoupleq(
    w: Array,
    gram: Array,
    rounds: Array,
    refits: Array,
    damp: Array,
    *,
    fmt: Format,
    order: gptq.Order,
    block: int,
    range: Range | None,
) -> QArray:
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    gram = gram + damp * jnp.mean(jnp.diagonal(gram)) * jnp.eye(len(w))
    factored = gptq.factor(gram, 0.0, order=order)
    first = rtn(w, fmt, range=range)

    def turn(_: Array, state: State) -> State:
        point, scales = state
        q, _ = gptq.sweep(w, factored, fmt, block=block, grid=scales.grid)
        new = descent.at(w, dequantize(q), gram)
        better = _objective(w, new) < _objective(w, point)
        point = Point(*(jnp.where(better[None], a, b) for a, b in zip(new, point, strict=True)))
        return lax.fori_loop(jnp.int32(0), refits, lambda _, state: _refit(state, gram, fmt), (point, scales))

    state = descent.at(w, dequantize(first), gram), group_scales.of_grid(first.grid, *w.shape)
    point, scales = lax.fori_loop(jnp.int32(0), rounds, turn, state)
    return encode(scales.grid, point.values)


def _refit(state: State, gram: Array, fmt: Format) -> State:
    point, scales = state
    return descent.scales(point, gram, scales, fmt)


def _objective(w: Array, point: Point) -> Array:
    """(w - Ŵ)ᵀ H (w - Ŵ) of each column `[N]`."""
    return jnp.sum((w - point.values) * point.residual, axis=0)
