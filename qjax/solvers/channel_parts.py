"""A matrix cut into parts of input channels, each in a format of its own: nearest, or GPTQ through all of them.

GPTQ of a matrix whose rows A come first and rows B last is GPTQ of A under the Schur complement H_AA - H_AB H_BB⁻¹ H_BA
(what the rows of A cost when B may still make up for them), then GPTQ of B, with B given H_BB⁻¹ H_BA (W_A - Ŵ_A) on
top. So the parts are solved one after the other by the plain sweep, each in its format, with the same result.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.quantization import dequantize
from qjax.ranges import Range
from qjax.solvers.gptq import factor, sweep
from qjax.solvers.nearest import rtn


def in_parts(
    w: jax.Array,
    order: jax.Array,
    sizes: Sequence[int],
    formats: Sequence[Format | str],
    gram: jax.Array | None = None,
    *,
    ranges: Sequence[Range | None] | None = None,
    damp: float = 0.01,
) -> tuple[Any, ...]:
    """The rows of `w [K, N]` in this order, cut into parts of these sizes: what `Columns(parts, order)` takes.

    A format may also be "float32", "float16" or "bfloat16", in which the part is kept; `ranges` holds an estimator for
    each part. Without `gram` [K, K] each part is rounded to nearest; with it, GPTQ goes through them in order, `damp`
    as in `qjax.solvers.gptq`, relative to the mean of the whole diagonal.
    """
    chosen = [None] * len(sizes) if ranges is None else ranges
    ends = list(itertools.accumulate(sizes))
    rows = w.astype(jnp.float32)[order]
    if gram is None:
        cut = jnp.split(rows, ends[:-1])
        return tuple(_nearest(part, f, r) for part, f, r in zip(cut, formats, chosen, strict=True))
    h = gram.astype(jnp.float32)[order[:, None], order[None, :]]
    diagonal = jnp.diagonal(h)
    alive = jnp.where(diagonal == 0, 1, diagonal)
    h = h + jnp.diag(alive - diagonal + damp * jnp.mean(alive))
    rows = jnp.where((diagonal == 0)[:, None], 0, rows)
    parts = []
    for size, f, r in zip(sizes, formats, chosen, strict=True):
        part, rest = rows[:size], rows[size:]
        here, there, both = h[:size, :size], h[size:, size:], h[size:, :size]
        spread = jnp.linalg.solve(there, both) if len(rest) else both  # H_BB⁻¹ H_BA
        if kept(f):
            parts.append(part.astype(f))
            error = part - parts[-1].astype(jnp.float32)
        else:
            complement = here - jnp.matmul(both.T, spread, precision="highest")
            q, _ = sweep(part, factor((complement + complement.T) / 2, 0.0), as_format(f), range=r)
            parts.append(q)
            error = part - dequantize(q).astype(jnp.float32)
        rows = rest + jnp.matmul(spread, error, precision="highest")
        h = there
    return tuple(parts)


def _nearest(w: jax.Array, f: Format | str, range: Range | None) -> Any:
    return w.astype(f) if kept(f) else rtn(w, f, range=range)


def kept(f: Format | str) -> TypeGuard[str]:
    """Whether this is a float dtype, not a format."""
    return f in ("float32", "float16", "bfloat16")
