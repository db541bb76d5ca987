"""Frame quantization: weights in a redundant frame, rounded by sigma-delta (Czaja and Na 2024, arXiv:2404.08131; D13).

A finite unit-norm tight frame of M vectors e_i in R^K, M ≥ K, has Σ e_i e_iᵀ = (M/K) I. A column w of W [K, N] is
known by its coefficients ⟨w, e_i⟩; first-order sigma-delta rounds them so that each error is taken back by the next,

    q_i = Q(u_{i-1} + ⟨w, e_i⟩),   u_i = u_{i-1} + ⟨w, e_i⟩ - q_i,   ŵ = (K/M) Σ q_i e_i.

Neighbours of the harmonic frame are nearly parallel, so that the error falls as 1/M, faster than the 1/√M of rounding
every coefficient by itself.
"""

from __future__ import annotations

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators import Frame, Pre
from qjax.quantization import encode
from qjax.ranges import Range
from qjax.solvers import group_scales
from qjax.solvers.descent import matmul


def sigma_delta(w: Array, fmt: Format | str, *, redundancy: float = 2.0, range: Range | None = None) -> Pre:
    """`w [K, N]` as `Pre(frame, QArray [M, N])`, M = round(redundancy · K); needs no data.

    Blocks of `fmt` lie along the coefficients. The frame follows from K and M and costs no bits; the codes cost M/K
    times those of `fmt`.

    Raises:
        ValueError: a redundancy below 1.
    """
    count = round(redundancy * w.shape[0])
    if count < w.shape[0]:
        raise ValueError(f"sigma_delta: a redundancy of {redundancy} leaves {count} vectors for {w.shape[0]} inputs")
    return _sigma_delta(w, fmt=as_format(fmt), count=count, range=range)


@partial(jax.jit, static_argnames=("fmt", "count", "range"))
def _sigma_delta(w: Array, *, fmt: Format, count: int, range: Range | None) -> Pre:
    frame = harmonic_frame(w.shape[0], count)
    coefficients = matmul(jnp.asarray(frame), w.astype(jnp.float32))
    scales = group_scales.original(coefficients, fmt, range)
    size = group_scales.size(scales.grid, count)

    def step(error: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        coefficient, position = at
        wanted = error + coefficient
        row = group_scales.nearest(wanted, scales, position // size)
        return wanted - row, row

    start = jnp.zeros(w.shape[1], jnp.float32)
    _, rows = lax.scan(step, start, (coefficients, jnp.arange(count)))
    return Pre(Frame(jnp.asarray(frame.T * (w.shape[0] / count))), encode(scales.grid, rows))


@functools.cache
def harmonic_frame(size: int, count: int) -> np.ndarray:
    """The `count` unit vectors [count, size] of the real harmonic frame: cosines and sines of growing frequency.

    >>> frame = harmonic_frame(5, 8)
    >>> bool(np.allclose(frame.T @ frame, 8 / 5 * np.eye(5), atol=1e-6)), bool(np.allclose((frame**2).sum(1), 1))
    (True, True)
    """
    angle = 2 * np.pi * np.arange(count)[:, None] / count
    # Half-odd frequencies for an even size: the highest whole one would vanish at count = size.
    frequencies = np.arange(size // 2) + (0.5 if size % 2 == 0 else 1.0)
    pairs = np.stack([np.cos(angle * frequencies), np.sin(angle * frequencies)], axis=-1).reshape(count, -1)
    constant = np.full((count, size % 2), np.sqrt(0.5))
    return (np.concatenate([constant, pairs], axis=1) * np.sqrt(2 / size)).astype(np.float32)
