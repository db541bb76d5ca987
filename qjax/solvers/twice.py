"""GPTQT: quantize twice (Guo, Lang, Ren 2024, arXiv:2407.02891; catalogue E21).

The grid of every group is a binary coding of a few bits inside the integers of more bits (`binary_codes`), its coding
and scale chosen by the weight error under the diagonal of H; then GPTQ rounds to it. Both steps merge into one table
c + Σ b_i a_i, which a binary-coding kernel reads.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.codebooks.binary_codes import binary_codes
from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.formats.table import Table
from qjax.qarray import QArray
from qjax.quantization import fit
from qjax.solvers import gptq


def gptqt(
    w: Array,
    gram: Array,
    fmt: Format | str,
    *,
    first: int | None = None,
    order: gptq.Order = "none",
    damp: float = 0.01,
    block: int = 128,
) -> QArray:
    """Quantize `w [K, N]` to binary codes with the bits, blocks and scales of `fmt`; `gram [K, K]` is XᵀX.

    `first`: bits of the first, linear step, by default one more than those of `fmt`. The element's own values do not
    matter, and neither does an offset: the coding has its own.
    """
    f = twice(as_format(fmt), first)
    importance = jnp.maximum(jnp.diagonal(gram).astype(jnp.float32), jnp.finfo(jnp.float32).tiny)
    grid = fit(w.astype(jnp.float32), f, axis=-2, weights=importance[:, None])
    return gptq.sweep(w, gptq.factor(gram, damp, order=order), f, block=block, grid=grid)[0]


def twice(fmt: Format, first: int | None) -> Format:
    """The format of binary codes with the bits, blocks and scales of another."""
    bits = fmt.element.bits
    linear = tuple(np.linspace(-1, 1, 2**bits).tolist())
    levels = binary_codes(bits + 1 if first is None else first)
    rule = fmt.rule if fmt.rule in ("floor", "rceil", "even", "ceil") else "absmax"
    return dataclasses.replace(
        fmt, element=Table(f"binary{bits}", linear), rule=rule, offset=None, levels=levels, scale=fmt.scale or "float32"
    )
