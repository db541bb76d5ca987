"""Sums of groups shorter than a matrix unit is deep: several groups share a product, each in rows of x of its own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu.codings import Coding
from qjax.kernels.tpu.tiles import LANES

STRIP = 256  # columns multiplied at a time where groups share a span: their sums are to stay in registers


def copies(span: int, group: int) -> int:
    """How many rows each row of x becomes."""
    return max(span // group, 1)


def spread(x: jax.Array, block: int, span: int, group: int) -> jax.Array:
    """x [M, K] -> [copies M, K]: copy r of a row has the entries of the r-th group of every span, and zeros.

    The copies of `block` rows lie together, the first of every row before the second of any.
    """
    count = copies(span, group)
    if count == 1:
        return x
    M, K = x.shape
    own = jnp.arange(K)[None, :] % span // group == jnp.arange(count)[:, None]
    parted = jnp.where(own[None, :, None, :], x.reshape(M // block, 1, block, K), jnp.zeros((), x.dtype))
    return parted.reshape(M * count, K)


def strips(columns: int, span: int, group: int) -> list[slice]:
    """The columns of a block in the parts that are multiplied at a time."""
    width = columns if copies(span, group) == 1 else min(STRIP, columns)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def room_for_levels(K: int, rows: int, coding: Coding, span: int) -> Any:
    """Vector memory for `fill_levels` under so many rows of spread x."""
    return pltpu.VMEM((K // span if coding.above else 1, rows, LANES), jnp.float32)


def fill_levels(x: Any, room: Any, coding: Coding, span: int) -> None:
    """Put what the `above` of codes adds to the sums of each span in room [K / span, rows, LANES], all lanes alike."""
    if coding.above:
        ones = jnp.full((span, LANES), coding.above * coding.factor, x.dtype)
        for i in range(room.shape[0]):
            room[i] = product(x[:, i * span : (i + 1) * span], ones)


def scaled_sums(
    total: jax.Array,
    x: Any,
    levels: Any,
    codes: Callable[[slice], jax.Array],
    scale: Callable[[int], jax.Array],
    coding: Coding,
    span: int,
    group: int,
) -> jax.Array:
    """total [M, n] + x @ (values * scale), for a reference to spread x [copies M, K], inside a kernel.

    levels: as `fill_levels` left it. codes: rows of the array of codes -> [rows, n]; scale: a group -> [1, n] float32.
    Bounded by the depth of a block.
    """
    count = copies(span, group)
    M, K = x.shape[0] // count, x.shape[1]
    for first in range(0, K, span * coding.packed):
        stored = first // coding.packed
        operands = coding.operands(codes(slice(stored, stored + span)))
        for i in range(coding.packed):
            start = first + i * span
            here = x[:, start : start + span]
            own = operands[i * coding.summands : (i + 1) * coding.summands]
            part = functools.reduce(operator.add, (product(here, w) for w in own))
            if coding.above:
                part -= jnp.concatenate([levels[start // span]] * (part.shape[1] // LANES), axis=1)
            for r in range(count):
                total += part[r * M : (r + 1) * M] * scale(start // group + r)
    return total


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x @ w in float32; the two may have different types."""
    return lax.dot_general(x, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
