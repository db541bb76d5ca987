"""BitStack: a matrix as a stack of one-bit layers, each a matrix of signs times magnitudes of low rank.

Wang et al., "BitStack: any-size compression of large language models in variable memory environments", 2024
(arXiv:2410.23918, section 3; catalogue E30): the residual R is taken apart as sign(R) * |R|, |R| is cut to rank k by
its singular values, and the next layer takes what is left. Every prefix of the stack is a model: dropping layers from
the end gives memory back.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import FULL, Format
from qjax.formats.table import Table
from qjax.operators.scaled import Scaled
from qjax.operators.sum import Sum
from qjax.quantization import quantize
from qjax.solvers.singular import largest

SIGN = Format(Table("sign", (-1.0, 1.0)), FULL, FULL, "bfloat16")


class Stack(NamedTuple):
    """Layers `signs [depth, K, N]` (±1), `a [depth, K, k]`, `b [depth, k, N]`; `errors [depth]`: ‖R‖² after each."""

    signs: Array
    a: Array
    b: Array
    errors: Array


@partial(jax.jit, static_argnames=("depth", "rank"))
def decompose(w: Array, *, depth: int, rank: int) -> Stack:
    """Take `w [K, N]` apart into `depth` layers of rank `rank`; the factors share the singular values evenly."""

    def layer(rest: Array, _: None) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        signs = jnp.where(rest < 0, jnp.float32(-1), jnp.float32(1))
        u, s, vt = largest(jnp.abs(rest), rank)
        root = jnp.sqrt(s)
        a, b = u * root[None, :], root[:, None] * vt
        rest = rest - signs * jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
        return rest, (signs, a, b, jnp.sum(rest * rest))

    return Stack(*lax.scan(layer, w.astype(jnp.float32), None, length=depth)[1])


def operator(stack: Stack, store: str = "float16") -> Sum:
    """The stack as an operator: signs in one bit an entry, factors stored as `store`."""
    layers = [
        Scaled(quantize(signs, SIGN), a.astype(store), b.astype(store))
        for signs, a, b in zip(stack.signs, stack.a, stack.b, strict=True)
    ]
    return Sum(tuple(layers))
