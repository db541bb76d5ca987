"""GPTAQ and ResComp: GPTQ towards the output of the float model (catalogue E4, E5).

GPTAQ (Li et al. 2025, arXiv:2504.02692) asks of a layer that reads X, the quantized prefix's output, the result of the
float model, which reads X̃ = X + ΔX: ‖XŴ - X̃W‖². Its theorem 4.2 adds to GPTQ's repair of row j what the rows k < j
lost before this layer, by "neuron decomposition" each row k for itself,

    w_j += Σ_k P₁[k, j]·w_k,   P₁ = striu(ΔXᵀX·Uᵀ)·U,   UᵀU = (XᵀX + λI)⁻¹ upper,

w_k being the row as it was rounded. ResComp (Li et al. 2026, arXiv:2604.07955) keeps the target at the original
weights, since w_k has been moved by earlier repairs: with the original row w⁰_k,

    w_j += Σ_k P₂[k, j]·(w⁰_k - w_k),   P₂ = striu(X̃ᵀX·Uᵀ)·U.

Authors' codes scale P₁ by α = 0.25 (not in the paper). With X̃ = X and without ResComp, GPTAQ is GPTQ.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.ranges import Range
from qjax.solvers import gptq
from qjax.solvers.descent import matmul
from qjax.solvers.gptq import Carry, Factor
from qjax.solvers.group_scales import Groups


def gptaq(
    w: Array,
    gram: Array,
    cross_gram: Array,
    fmt: Format | str,
    *,
    alpha: float = 0.25,
    compensation: float = 0.0,
    groups: Groups = "static",
    order: gptq.Order = "none",
    damp: float = 0.01,
    block: int = 128,
    range: Range | None = None,
    dtype: gptq.Precision = "float32",
) -> QArray:
    """Quantize `w [K, N]` to `fmt`; `gram [K, K]` is XᵀX of the quantized stream, `cross_gram` XᵀX̃ with the float one.

    `alpha` scales P₁, `compensation` P₂ (0: GPTAQ; the value of `alpha` in ResComp's code). Everything else as in
    `qjax.solvers.gptq.solve`. Leaves with one input may share `prepare` and call `qjax.solvers.gptq.sweep`.
    """
    factored, carry = prepare(
        gram, cross_gram, alpha=alpha, compensation=compensation, order=order, damp=damp, dtype=dtype
    )
    return gptq.sweep(w, factored, fmt, groups=groups, block=block, range=range, carry=carry)[0]


def prepare(
    gram: Array,
    cross_gram: Array,
    *,
    alpha: float = 0.25,
    compensation: float = 0.0,
    order: gptq.Order = "none",
    damp: float = 0.01,
    dtype: gptq.Precision = "float32",
) -> tuple[Factor, Carry]:
    """What depends on the input alone: the factor of the Gram matrix, and αP₁ and P₂ as a `Carry`."""
    if cross_gram.shape != gram.shape:
        raise ValueError(f"cross_gram has shape {cross_gram.shape}, gram {gram.shape}; they pair the same inputs")
    factored = gptq.factor(gram, damp, order=order, dtype=dtype)
    with gptq.precision(dtype):
        return factored, _carry(gram, cross_gram, factored, jnp.asarray(alpha, dtype), jnp.asarray(compensation, dtype))


@partial(jax.jit)
def _carry(gram: Array, cross: Array, factored: Factor, alpha: Array, compensation: Array) -> Carry:
    upper, order = factored.upper, factored.sequence
    alive = ~factored.dead[order]

    def decomposed(moment: Array) -> Array:
        """striu(M·Uᵀ)·U of a moment (input k, input j), in the order of processing; nothing flows into dead inputs."""
        moment = jnp.where(alive[None], moment[order[:, None], order[None, :]].astype(upper.dtype), 0)
        return matmul(jnp.triu(matmul(moment, upper.T), 1), upper)

    # In a fallback U is the identity and nothing is repaired.
    use = jnp.where(factored.fallback, jnp.zeros_like(alpha), jnp.ones_like(alpha))
    moved = use * alpha * decomposed(cross.T - gram)
    kept = use * compensation * decomposed(cross.T)
    return Carry(moved - kept, kept)
