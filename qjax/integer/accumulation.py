"""Accumulators narrower than int32: what a sum of products becomes when every addition wraps or saturates."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

Overflow = Literal["wrap", "saturate"]


def accumulate(a: Array, b: Array, bits: int, overflow: Overflow = "saturate") -> Array:
    """a [M, K] times b [K, N] (integers of at most 16 bits), summed along K in order in a signed accumulator; int32.

    bits     : of the accumulator, 2..32. Products are exact; each is added to the accumulator.
    overflow : a sum beyond it "wrap"s around (two's complement) or "saturate"s at its end after each addition, as
               hardware does one or the other (catalogue A4). Saturating sums depend on the order.

    >>> ones = jnp.ones((1, 2), jnp.int8)
    >>> [accumulate(127 * ones, ones.T, 8, how).item() for how in ("wrap", "saturate")]
    [-2, 127]

    Raises:
        TypeError: a or b are not integers of at most 16 bits.
        ValueError: bits or overflow is none of those above.
    """
    for name, x in (("a", a), ("b", b)):
        if not jnp.issubdtype(x.dtype, jnp.integer) or jnp.iinfo(x.dtype).bits > 16:
            raise TypeError(f"accumulate: {name} must hold integers of at most 16 bits, got {x.dtype}")
    if not 2 <= bits <= 32:
        raise ValueError(f"accumulate: bits must be 2..32, got {bits}")
    if overflow not in get_args(Overflow):
        raise ValueError(f"accumulate: overflow {overflow!r} is none of {', '.join(get_args(Overflow))}")
    if overflow == "wrap":  # additions modulo 2^bits may be done modulo 2^32 first
        exact = jnp.matmul(a.astype(jnp.int32), b.astype(jnp.int32))
        return (exact << (32 - bits)) >> (32 - bits)
    top = jnp.int32(2 ** (bits - 1) - 1)

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        column, row = (x.astype(jnp.int32) for x in pair)
        product = column[:, None] * row[None, :]
        # Both terms lie in int32; where their sum does not, the sign that they share says at which end.
        room = jnp.where(product > 0, top - product, -top - 1 - product)
        over = jnp.where(product > 0, total > room, total < room)
        return jnp.where(over, jnp.where(product > 0, top, -top - 1), total + product), None

    start = jnp.zeros((a.shape[0], b.shape[1]), jnp.int32)
    return jax.lax.scan(add, start, (a.T, b))[0]
