"""OWQ: outlier-aware weight quantization (Lee et al. 2024, arXiv:2306.02272; catalogue E9).

The sensitivity of input channel j is λ_j = H_jj ‖W_j - Q(W_j)‖² (the paper's eq. 4). The channels with the largest λ
stay in half precision, the rest go through GPTQ, and the weak channels, last in the order, take up what is left.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators import Columns
from qjax.operators.sparse import narrowest
from qjax.quantization import dequantize
from qjax.ranges import Range
from qjax.solvers import gptq
from qjax.solvers.descent import matmul
from qjax.solvers.gptq import Factor
from qjax.solvers.nearest import rtn


def owq(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    channels: int,
    order: gptq.Order = "none",
    damp: float = 0.01,
    block: int = 128,
    range: Range | None = None,
) -> Columns:
    """`w [K, N]` as `Columns((QArray of K - channels rows, float16 [channels, N]))`; `gram [K, K]` is XᵀX.

    The kept channels are the most sensitive ones. The others keep their order (or are processed and stored by falling
    sensitivity, with order="activation"), and groups of scales are counted among them.

    Raises:
        ValueError: `channels` is not between 1 and K - 1.
    """
    if not 1 <= channels < w.shape[0]:
        raise ValueError(f"owq keeps {channels} of {w.shape[0]} input channels; give at least 1 and fewer than all")
    f = as_format(fmt)
    return _owq(
        w, gram, jnp.float32(damp), fmt=f, channels=channels, ordered=order == "activation", block=block, range=range
    )


@partial(jax.jit, static_argnames=("fmt", "channels", "ordered", "block", "range"))
def _owq(
    w: Array,
    gram: Array,
    damp: Array,
    *,
    fmt: Format,
    channels: int,
    ordered: bool,
    block: int,
    range: Range | None,
) -> Columns:
    w = w.astype(jnp.float32)
    rest = len(w) - channels
    lost = w - dequantize(rtn(w, fmt, range=range))
    falling = jnp.argsort(-jnp.diagonal(gram) * jnp.sum(lost * lost, axis=1), stable=True)
    others = falling[channels:] if ordered else jnp.sort(falling[channels:])
    sequence = jnp.concatenate([others, falling[:channels]])
    w, gram = w[sequence], gram[sequence[:, None], sequence[None, :]]
    factored = gptq.factor(gram, damp)
    upper = factored.upper
    first = Factor(
        upper[:rest, :rest], factored.sequence[:rest], factored.dead[:rest], factored.damp, factored.fallback
    )
    q, repaired = gptq.sweep(w[:rest], first, fmt, block=block, range=range)
    errors = (repaired - dequantize(q)) / jnp.diagonal(first.upper)[:, None]
    weak = jnp.where(factored.dead[rest:, None], 0, w[rest:] - matmul(upper[:rest, rest:].T, errors))
    limit = float(jnp.finfo(jnp.float16).max)
    return Columns((q, jnp.clip(weak, -limit, limit).astype(jnp.float16)), sequence.astype(narrowest(len(w))))
