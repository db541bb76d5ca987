"""Quantization and low rank in turns: each takes what the other left (LoftQ, MiLo).

LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1; catalogue P2): Q_t = quantize(W - A B), then A B = SVD_r(W - Q_t).
MiLo (Huang et al. 2025, arXiv:2504.02658; catalogue F8) does the same with a half-quadratic quantizer and stops when
the error no longer falls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.qarray import QArray
from qjax.quantization import dequantize
from qjax.solvers import whitening
from qjax.solvers.lqer import low_rank
from qjax.solvers.whitening import Weighting


class Alternation(NamedTuple):
    """The best of all steps: W ≈ q + a @ b. `errors [steps]`: ‖S(W - q - ab)‖² after each."""

    q: QArray
    a: Array
    b: Array
    errors: Array


def alternate(
    w: Array, quantize: Callable[[Array], QArray], rank: int, *, steps: int = 5, scale: Weighting = None
) -> Alternation:
    """Alternate `quantize` and the best rank-`rank` correction of `w [K, N]`, weighted by `scale` as in `low_rank`.

    One step is quantization with a correction behind it. No step must improve (a quantizer that refits its scales is no
    projection), so the best one is returned.
    """
    w = w.astype(jnp.float32)

    def step(state: tuple[Array, Array, Array, Alternation], _: None) -> tuple[tuple, Array]:
        a, b, least, best = state
        q = quantize(w - jnp.matmul(a, b, precision=lax.Precision.HIGHEST))
        a, b = low_rank(w, q, rank, scale)
        rest = w - dequantize(q).astype(jnp.float32) - jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
        error = jnp.sum(whitening.apply(scale, rest) ** 2)
        better = error < least
        now = Alternation(q, a, b, best.errors)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), now, best)
        return (a, b, jnp.minimum(error, least), best), error

    a, b = jnp.zeros((w.shape[0], rank), jnp.float32), jnp.zeros((rank, w.shape[1]), jnp.float32)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(quantize, w))
    started = Alternation(empty, a, b, jnp.zeros((), jnp.float32))
    (_, _, _, best), errors = lax.scan(step, (a, b, jnp.float32(jnp.inf), started), None, length=steps)
    return best._replace(errors=errors)
