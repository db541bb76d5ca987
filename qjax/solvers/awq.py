"""AWQ: input channels scaled up before rounding in proportion to a power of their size, and clipped groups.

Lin et al., "AWQ: activation-aware weight quantization", 2023 (arXiv:2306.00978, eq. 4-5; catalogue E8): W x is
Q(W diag(s)) diag(s)⁻¹ x with s = mean|x|^alpha, alpha from a grid by the error of the output; then each group's range
shrinks as far as that lowers the error of the group's own share of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import FULL, Format
from qjax.formats.spelling import as_format
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode, fit
from qjax.ranges.range import Project, extremes
from qjax.solvers.layer_error import column_objectives, objective
from qjax.solvers.nearest import rtn


class Search(NamedTuple):
    """What the search found.

    `scale [K]` multiplies the input channels of the weight, `alpha` is its exponent; `errors [points]`: ‖X(W - Ŵ)‖²
    over all matrices at every exponent of the grid `alphas [points]`.
    """

    scale: Array
    alpha: Array
    alphas: Array
    errors: Array


def search(
    ws: Sequence[Array],
    gram: Array,
    size: Array,
    fmt: Format | str,
    *,
    alphas: Sequence[float] = tuple(i / 20 for i in range(20)),
    weights: bool = False,
) -> Search:
    """The channel scale shared by all `ws [K, N_i]` that read one input, for rounding to nearest in `fmt`.

    `gram [K, K]` is XᵀX and `size [K]` the mean |x|. With `weights` the scale is divided by the mean size of the
    channel's weights relative to their groups, to the power 1 - alpha (TensorRT Model Optimizer and AutoAWQ's "duo"
    scaling). Scales are kept above 1e-4 and centred: the product of their largest and smallest is one.

    Raises:
        ValueError: no matrices, or shapes that do not fit.
    """
    rows = gram.shape[0]
    if not ws or any(w.shape[0] != rows for w in ws) or gram.shape != (rows, rows) or size.shape != (rows,):
        raise ValueError(f"awq: weights {[w.shape for w in ws]} do not fit a gram {gram.shape} and sizes {size.shape}")
    return _search(tuple(ws), gram, size, jnp.asarray(alphas, jnp.float32), fmt=as_format(fmt), weights=weights)


@partial(jax.jit, static_argnames=("fmt", "weights"))
def _search(ws: tuple[Array, ...], gram: Array, size: Array, alphas: Array, *, fmt: Format, weights: bool) -> Search:
    ws = tuple(w.astype(jnp.float32) for w in ws)
    relative = _relative_size(jnp.concatenate(ws, axis=1), fmt) if weights else None

    def error(alpha: Array) -> tuple[Array, Array]:
        s = channel_scale(size, alpha, relative)
        moved = [dequantize(rtn(s[:, None] * w, fmt)) / s[:, None] for w in ws]
        return s, sum((objective(gram, w - m) for w, m in zip(ws, moved, strict=True)), jnp.float32(0))

    def step(best: tuple[Array, Array, Array], alpha: Array) -> tuple[tuple[Array, Array, Array], Array]:
        s, e = error(alpha)
        better = e < best[0]
        kept = (jnp.where(better, e, best[0]), jnp.where(better, s, best[1]), jnp.where(better, alpha, best[2]))
        return kept, e

    start = (jnp.float32(jnp.inf), jnp.ones_like(size, jnp.float32), jnp.float32(0))
    (_, scale, alpha), errors = lax.scan(step, start, alphas)
    return Search(scale, alpha, alphas, errors)


def channel_scale(size: Array, alpha: Array | float, relative: Array | None = None) -> Array:
    """size^alpha [/ relative^(1 - alpha)], at least 1e-4 and centred so that its extremes multiply to one; `[K]`."""
    s = size.astype(jnp.float32) ** alpha
    if relative is not None:
        s = s / (relative ** (1 - alpha) + jnp.finfo(jnp.float32).tiny)
    s = jnp.clip(s, 1e-4, 1e4)
    return s / jnp.sqrt(jnp.max(s) * jnp.min(s))


def _relative_size(w: Array, fmt: Format) -> Array:
    """Mean over outputs of |w| relative to its group's largest, `[K]`."""
    group = w.shape[0] if fmt.block == FULL else fmt.block
    size = jnp.pad(jnp.abs(w), ((0, -w.shape[0] % group), (0, 0)))
    grouped = size.reshape(-1, group, w.shape[1])
    top = jnp.max(grouped, axis=1, keepdims=True)
    return jnp.mean(grouped / jnp.where(top > 0, top, 1), axis=2).reshape(-1)[: w.shape[0]]


def clipped(w: Array, gram: Array, fmt: Format | str, *, points: int = 20, shrink: float = 0.5) -> QArray:
    """Round `w [K, N]` to nearest in ranges clipped to the fraction 1 - i/points, i < shrink·points, of their absmax.

    Every group of an output picks the fraction with the least eᵀHe, e its error and H its diagonal block of `gram`
    [K, K]: the error of its own share of the output. Ties go to the wider range.

    Raises:
        ValueError: a format whose outputs share scales, or shapes that do not fit.
    """
    f = as_format(fmt)
    if f.across != 1:
        raise ValueError(
            f"{f.name}: outputs that share a scale cannot be clipped one by one; give a format per channel"
        )
    if gram.shape != (w.shape[0], w.shape[0]):
        raise ValueError(f"gram has shape {gram.shape}, a weight {w.shape} needs [K, K]")
    return _clipped(w, gram, fmt=f, points=points, tries=max(1, int(shrink * points)))


@partial(jax.jit, static_argnames=("fmt", "points", "tries"))
def _clipped(w: Array, gram: Array, *, fmt: Format, points: int, tries: int) -> QArray:
    rows = w.shape[0]
    group = rows if fmt.block == FULL else fmt.block
    fill = -rows % group
    count = (rows + fill) // group
    padded = jnp.pad(gram.astype(jnp.float32), ((0, fill), (0, fill)))
    own = jnp.arange(count)
    factors = 1 - jnp.arange(tries, dtype=jnp.float32) / jnp.float32(points)
    inner = padded.reshape(count, group, count, group)[own, :, own, :]

    def estimate(
        x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        high = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
        low, top = extremes(x, axes, fmt)

        def shrunk(factor: Array) -> tuple[Array, Array]:
            return jnp.maximum(low, -factor * high), jnp.minimum(top, factor * high)

        def loss(factor: Array) -> Array:
            error = (project(*shrunk(factor)) - x).reshape(count, group, -1)
            return column_objectives(inner, error).reshape(high.shape)

        def step(best: tuple[Array, Array], factor: Array) -> tuple[tuple[Array, Array], None]:
            e = loss(factor)
            return (jnp.where(e < best[0], e, best[0]), jnp.where(e < best[0], factor, best[1])), None

        (_, factor), _ = lax.scan(step, (loss(factors[0]), jnp.ones_like(high)), factors[1:])
        return shrunk(factor)

    return encode(fit(w, fmt, axis=-2, range=estimate), w)
