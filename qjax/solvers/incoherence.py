"""QuIP: quantization with incoherence processing (Chee et al. 2023, arXiv:2307.13304; catalogue E15).

Random orthogonal U, V make every entry of the weight and every eigenvector of H of about the same size ("incoherent"):

    W ≈ D⁻¹ V Q Uᵀ,   Q = LDLQ(Vᵀ D W U, Vᵀ D⁻¹ H D⁻¹ V),   D_kk = (H_kk / ‖W_k‖²)^¼,

with V, U Kronecker products of two random orthogonal matrices (QuIP) or random Hadamard matrices (as in QuIP#). LDLQ
rounds row k to Q(w_k + Σ_{j<k} (w_j - q_j) a_jk), H = (A + I)ᵀ D (A + I) in the order of processing; its theorem 6 says
that this is GPTQ, which is what runs here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators import Diag, Hadamard, Kronecker, Map, Operator, Post, Pre
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode
from qjax.ranges import Range
from qjax.ranges.range import Project
from qjax.solvers import descent, gptq, group_scales

Incoherence = Literal["kronecker", "hadamard", "none"]


@dataclasses.dataclass(frozen=True)
class Deviations:
    """The range ±`times` the root mean square of each block: QuIP's 2.4, for weights that incoherence made Gaussian."""

    times: float = 2.4

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        counted = jnp.ones_like(x) if weights is None else jnp.broadcast_to(weights, x.shape)
        total = jnp.maximum(jnp.sum(counted, axis=axes, keepdims=True), 1)
        high = self.times * jnp.sqrt(jnp.sum(counted * x * x, axis=axes, keepdims=True) / total)
        return -high, high


def quip(
    w: Array,
    gram: Array,
    fmt: Format | str,
    key: Array,
    *,
    incoherence: Incoherence = "kronecker",
    rescale: bool = True,
    damp: float = 0.01,
    greedy: int = 0,
    block: int = 128,
    range: Range | None = Deviations(),
) -> QArray | Operator:
    """`w [K, N]` as maps around a QArray: `Pre(Diag, Pre(V, Post(QArray, Uᵀ)))`; `gram [K, K]` is XᵀX.

    Rotations are drawn from `key` and cost no bits; D is kept in bfloat16. `greedy` passes of coordinate descent may
    follow LDLQ (the paper's "LDLQ-RG"). The default `range` clips at 2.4 root mean squares of each block.

    Raises:
        ValueError: an unknown incoherence, or sizes for which no Hadamard matrix is known.
    """
    if incoherence not in ("kronecker", "hadamard", "none"):
        raise ValueError(f"quip: incoherence {incoherence!r} is none of 'kronecker', 'hadamard', 'none'")
    return _quip(
        w,
        gram,
        key,
        jnp.float32(damp),
        jnp.int32(greedy),
        fmt=as_format(fmt),
        incoherence=incoherence,
        rescale=rescale,
        block=block,
        range=range,
    )


@partial(jax.jit, static_argnames=("fmt", "incoherence", "rescale", "block", "range"))
def _quip(
    w: Array,
    gram: Array,
    key: Array,
    damp: Array,
    greedy: Array,
    *,
    fmt: Format,
    incoherence: Incoherence,
    rescale: bool,
    block: int,
    range: Range | None,
) -> QArray | Operator:
    w, gram = w.astype(jnp.float32), gram.astype(jnp.float32)
    inside, outside = jax.random.split(key)
    scale = None
    if rescale:
        size, weight = jnp.diagonal(gram), jnp.sum(w * w, axis=1)
        live = (size > 0) & (weight > 0)
        log = jnp.where(live, jnp.log(jnp.where(live, weight, 1)) - jnp.log(jnp.where(live, size, 1)), 0) / 4
        # D⁻¹; only ratios matter, and what is stored is what is used.
        scale = jnp.exp(log - jnp.mean(log)).astype(jnp.bfloat16)
        stored = scale.astype(jnp.float32)
        w, gram = w / stored[:, None], gram * jnp.outer(stored, stored)
    front = back = None
    if incoherence != "none":
        front, back = rotation(inside, w.shape[0], incoherence), rotation(outside, w.shape[1], incoherence)
        w = back.apply(Pre(front.inverse(), w).affine()[0])
        gram = front.apply(front.apply(gram).T)

    q = gptq.sweep(w, gptq.factor(gram, damp), fmt, block=block, range=range)[0]
    scales = group_scales.of_grid(q.grid, *w.shape)

    def descend(_: Array, values: Array) -> Array:
        def nearest(row: Array, number: Array, position: Array) -> Array:
            return group_scales.nearest(row, scales, number)

        start = descent.at(w, values, gram)
        return descent.rows(start, gram, group_scales.size(scales.grid, len(w)), nearest, block=block).values

    q = encode(scales.grid, lax.fori_loop(jnp.int32(0), greedy, descend, dequantize(q)))
    op = q if back is None else Post(q, back.inverse())
    op = op if front is None else Pre(front, op)
    return op if scale is None else Pre(Diag(scale), op)


def rotation(key: Array, size: int, kind: Incoherence) -> Map:
    """A random orthogonal map of `size` channels that a token can afford: two Kronecker factors, or Hadamard."""
    if kind == "hadamard":
        return Hadamard.random(key, size)
    small = next(n for n in itertools.count(math.isqrt(size), -1) if size % n == 0)
    keys = jax.random.split(key)
    factors = tuple(jax.random.orthogonal(k, n) for k, n in zip(keys, (small, size // small), strict=True))
    return Kronecker(factors, orthogonal=True, drawn=True)
