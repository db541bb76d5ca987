"""Numbers to the parts of ggml blocks, as `ggml_quantize_chunk` chooses them (catalogue U1, U2, and IQ4_NL of U3).

Without importance the types of 32 round to the range of a block (`rounding`), k-quants and IQ4_NL search (`search`).
With importance, the mean squares of the inputs that llama.cpp calls an importance matrix, all of these search for the
least weighted error. Q8_0, ternary and FP4 types take no importance, as in ggml.

Where ggml's result is undefined, this is defined: numbers beyond the type's reach, whose scale or minimum would
overflow its float16, saturate there, infinities included; a NaN makes the scale of its block NaN. Where a product in a
search is a subnormal float32 (weights of a super-block all below about 1e-5), XLA takes it for zero and ggml does not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.ggml import rounding, search, superblocks
from qjax.formats.ggml.layout import Parts
from qjax.formats.ggml.rounding import Chosen, half
from qjax.formats.ggml.search import sums
from qjax.formats.ggml.superblocks import weighted
from qjax.formats.ggml.types import IQ4_NL, Part, Type, bias
from qjax.formats.rules import quotient

LANES = 2**14
"""Sub-blocks that a search works on at once: their sums stay in the cache."""


def _iq4_nl(x: Array, importance: Array | None) -> Chosen:
    values = np.asarray(IQ4_NL.entries, np.float32)
    energy = sums(lambda x: (x * x,), x)[0] * np.float32(2 / x.shape[0])
    scale = search.tabulated(x, x * x if importance is None else weighted(x, importance, energy), values)
    return {"scale": scale[None], "codes": search.nearest_index(values, rounding.inverse(scale)[None] * x)}


def _weighted_signed(x: Array, weight: Array, top: int) -> Chosen:
    scale, codes = search.symmetric(x, weight, top)
    return {"scale": scale[None], "codes": codes}


def _weighted_affine(x: Array, weight: Array, top: int) -> Chosen:
    scale, low, codes = search.affine(x, weight, top, -0.9, 0.05, 36)
    return {"scale": scale[None], "minimum": low[None], "codes": codes}


_ROUNDED: dict[str, Callable[[Array], Chosen]] = {
    "q4_0": functools.partial(rounding.signed, top=8),
    "q5_0": functools.partial(rounding.signed, top=16),
    "q4_1": functools.partial(rounding.spread, top=15),
    "q5_1": functools.partial(rounding.spread, top=31),
    "q8_0": functools.partial(rounding.symmetric, top=127),
    "tq1_0": functools.partial(rounding.symmetric, top=1),
    "tq2_0": functools.partial(rounding.symmetric, top=1),
    "mxfp4": rounding.mxfp4,
    "nvfp4": rounding.nvfp4,
}
_WEIGHTED: dict[str, Callable[[Array, Array], Chosen]] = {
    "q4_0": functools.partial(_weighted_signed, top=8),
    "q5_0": functools.partial(_weighted_signed, top=16),
    "q4_1": functools.partial(_weighted_affine, top=15),
    "q5_1": functools.partial(_weighted_affine, top=31),
}
_SEARCHED: dict[str, Callable[[Array, Array | None], Chosen]] = {
    "q2_k": functools.partial(superblocks.affine, size=16, top=3, limit=15, plain=(-0.5, 0.1, 15)),
    "q3_k": superblocks.q3_k,
    "q4_k": functools.partial(superblocks.affine, size=32, top=15, limit=63, plain=(-1.0, 0.1, 20)),
    "q5_k": functools.partial(superblocks.affine, size=32, top=31, limit=63, plain=(-0.5, 0.1, 15)),
    "q6_k": superblocks.q6_k,
    "iq4_nl": _iq4_nl,
}


def encode(x: Array, kind: Type, importance: Array | None = None) -> Parts:
    """The parts of `x` [blocks of a row, kind.block, rows...], float32; importance >= 0 broadcasts against it.

    Every part is [blocks, values, rows...]: float16 where the file holds halves, else uint8, as stored.
    """
    bad = jnp.any(jnp.isnan(x), axis=1, keepdims=True)
    x = jnp.where(jnp.isnan(x), jnp.float32(0), jnp.clip(x, *map(jnp.float32, _reach(kind))))
    if kind.name in _SEARCHED:
        chosen = _in_pieces(_SEARCHED[kind.name], x, importance, kind)
    elif importance is not None:
        row = x.reshape(-1, *x.shape[2:])
        energy = quotient(sums(lambda x: (x * x,), row)[0], row.shape[0])
        weigh = _WEIGHTED[kind.name]
        chosen = _in_pieces(lambda x, i: weigh(x, weighted(x, i, energy[None])), x, importance, kind)
    else:
        chosen = _across(_ROUNDED[kind.name], x)
    return {part: _stored(values, part, kind, bad) for part, values in chosen.items()}


def _reach(kind: Type) -> tuple[float, float]:
    """The least and the greatest number that blocks of a type can hold."""
    fmt, inner = kind.format, kind.format.scale
    unit = {"mxfp4": 2.0**125, "nvfp4": 1.0}.get(kind.name, rounding.HALF_MAX)
    if isinstance(inner, Format):
        unit *= max(-inner.element.min, inner.element.max)
    if fmt.offset == "minimum":
        return -unit, unit * fmt.element.max
    return -unit * max(-fmt.element.min, fmt.element.max), unit * max(-fmt.element.min, fmt.element.max)


def _across(encoder: Callable[..., Chosen], *arrays: Array | None) -> Chosen:
    """An encoder that works along the leading axis, on arrays [blocks, kind.block, rows...]."""
    chosen = encoder(*(None if a is None else jnp.swapaxes(a, 0, 1) for a in arrays))
    return {part: jnp.swapaxes(values, 0, 1) for part, values in chosen.items()}


def _in_pieces(encoder: Callable[..., Chosen], x: Array, importance: Array | None, kind: Type) -> Chosen:
    """An encoder on some blocks of all rows after the other."""
    blocks, lanes = x.shape[0], math.prod(x.shape[2:]) * kind.block // kind.format.block
    size = max(n for n in range(1, blocks + 1) if blocks % n == 0 and (n == 1 or n * lanes <= LANES))
    cut = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), (x, importance))
    chosen = lax.map(lambda arrays: _across(encoder, *arrays), cut)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), chosen)


def _stored(values: Array, part: Part, kind: Type, bad: Array) -> Array:
    """A part as the file holds it; `bad` [blocks, 1, rows...] marks blocks with a NaN."""
    inner = kind.format.scale
    if part == "codes":
        return (values.astype(jnp.int32) + bias(kind.format.element)).astype(jnp.uint8)
    if part in ("scales", "minima"):
        assert isinstance(inner, Format)
        code = (values.astype(jnp.int32) + bias(inner.element)).astype(jnp.uint8)
        return jnp.where(bad, jnp.uint8(0x7F), code) if kind.name == "nvfp4" else code
    if kind.name == "mxfp4":
        return jnp.where(bad, jnp.uint8(0xFF), values.astype(jnp.uint8))
    value = values if values.dtype == jnp.float16 else half(values)
    return jnp.where(bad, jnp.float16(jnp.nan), value) if part == "scale" else value
