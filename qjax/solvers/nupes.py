"""NUPES: integers that mean powers, sign(k) |k|^(1/a): a grid that is finer near zero, its exponent found per layer.

Yvinec, Dapogny and Bailly, "NUPES: non-uniform post-training quantization via power exponent search", 2023
(arXiv:2308.05600; catalogue E23), after their PowerQuant: x -> sign(x)|x|^a is the automorphism under which products
stay products. The paper rounds in the transformed space and descends on a; here a weight takes the nearest of the same
values, whose error is never larger, and a comes from a grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.formats.spelling import as_format
from qjax.formats.table import Table
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode, fit
from qjax.solvers.layer_error import objective

EXPONENTS = tuple(0.3 + 0.05 * i for i in range(15))


class Power(NamedTuple):
    """The quantized matrix with its table of powers, the exponent a, and the error at every exponent tried."""

    q: QArray
    exponent: Array
    errors: Array


def power(w: Array, fmt: Format | str, *, exponents: Sequence[float] = EXPONENTS, gram: Array | None = None) -> Power:
    """Round `w [K, N]` to powers with the exponent of least error: of the weights, or of the output with `gram [K, K]`.

    `fmt` is a symmetric integer format: its bits, blocks and scales are used; b bits hold the 2^b - 1 values
    sign(k) (|k| / (2^(b-1) - 1))^(1/a).

    Raises:
        ValueError: a format that is not a symmetric integer of at least 2 bits.
    """
    f = as_format(fmt)
    if not isinstance(f.element, Int) or f.element.min >= 0 or f.element.bits < 2 or f.offset is not None:
        raise ValueError(f"nupes: {f.name} is no symmetric integer format of 2 bits or more, whose codes have powers")
    return _power(w, jnp.asarray(exponents, jnp.float32), gram, fmt=f)


@partial(jax.jit, static_argnames=("fmt",))
def _power(w: Array, exponents: Array, gram: Array | None, *, fmt: Format) -> Power:
    top = 2 ** (fmt.element.bits - 1) - 1
    codes = [k / top for k in range(-top, top + 1)]
    element = Table(f"power{fmt.element.bits}", tuple(codes))
    grid = fit(w, dataclasses.replace(fmt, element=element, rule="absmax"), axis=-2)
    uniform = jnp.asarray(codes, jnp.float32)

    def table(a: Array) -> Array:
        return jnp.sign(uniform) * jnp.abs(uniform) ** (1 / a)

    def error(a: Array) -> Array:
        values = dequantize(encode(dataclasses.replace(grid, table=table(a)[None, None]), w))
        rest = w.astype(jnp.float32) - values.astype(jnp.float32)
        return jnp.sum(rest * rest) if gram is None else objective(gram, rest)

    errors = lax.map(error, exponents)
    best = exponents[jnp.argmin(errors)]
    return Power(encode(dataclasses.replace(grid, table=table(best)[None, None]), w), best, errors)
