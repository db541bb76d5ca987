"""What is added to a product while its block is in vector memory: t @ b of few columns and rows, a correction.

The low-rank part of a weight, with t = x @ a in front, or input channels that are kept as floats, with those of x as t.
Apart, the correction is a product that writes [M, N] to HBM and an addition that reads two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qjax.kernels.tpu import spans

SUBLANES = 16  # rows of bfloat16 in one tile of registers: b is filled up to a multiple
MOST = 512  # of t's columns: with more, blocks of t and b no longer fit beside those of the weight
LARGE = 1 << 20  # weights a block, scaled before they are multiplied, beside which the compiler's limit leaves no room
LIMIT = 32 << 20  # bytes of vector memory asked for there; v4, which has 16 MiB, takes smaller blocks


class Epilogue(NamedTuple):
    """y = (x @ W) * outer + t @ b: t [M, R], b [R, N], outer [1, N] or None, for ones.

    t and b are rounded to bfloat16, as x is, and their products summed in float32; outer is float32. What XLA
    multiplies for x of that type is rounded the same way.
    """

    t: jax.Array
    b: jax.Array
    outer: jax.Array | None = None


def refuse(rank: int) -> str | None:
    """Why no kernel adds a correction of so many columns of t, or None."""
    return f"a rank of {rank} is more than {MOST}, what there is vector memory for" if rank > MOST else None


def misfit(epilogue: Epilogue, M: int, N: int) -> str | None:
    """Why it cannot be added to [M, N], or None."""
    t, b, outer = epilogue
    rank = b.shape[0] if b.ndim == 2 else -1
    if t.shape != (M, rank) or b.shape != (rank, N) or (outer is not None and outer.shape != (1, N)):
        shapes = f"t {t.shape}, b {b.shape} and outer {None if outer is None else outer.shape}"
        return f"{shapes} are not [{M}, R], [R, {N}] and [1, {N}]"
    return refuse(rank)


def limit(added: Sequence[Any], weights: int) -> int | None:
    """Bytes of vector memory to ask for beside a block of so many scaled weights, or None for the compiler's own."""
    return LIMIT if added and weights > LARGE else None


def handed(epilogue: Epilogue, rows: int, unit: jax.Array | None) -> tuple[jax.Array, ...]:
    """What a kernel of so many rows is given: t, b, and outer * unit where either is there."""
    t, b, outer = epilogue
    M, rank = t.shape
    more = -rank % SUBLANES
    taken = (
        jnp.pad(t.astype(jnp.bfloat16), [(0, rows - M), (0, more)]),
        jnp.pad(b.astype(jnp.bfloat16), [(0, more), (0, 0)]),
    )
    if outer is None and unit is None:
        return taken
    factor = jnp.ones((1, b.shape[1]), jnp.float32) if outer is None else outer.astype(jnp.float32)
    return *taken, factor if unit is None else factor * unit


def begun(shape: tuple[int, int], *added: Any) -> jax.Array:
    """What the sums of a block [M, n] begin with, in a kernel: t @ b, or zeros where `ended` adds it or nothing does.

    added: references to t [M, R], b [R, n] and outer [1, n], as `handed` gave them, or nothing.
    """
    if not added or comes_last(added):
        return jnp.zeros(shape, jnp.float32)
    return spans.product(added[0][...], added[1][...])


def comes_last(added: Sequence[Any]) -> bool:
    """Whether sums must be whole before t @ b is added: outer meets them alone."""
    return len(added) == 3


def ended(y: jax.Array, t: Any, b: Any, outer: Any) -> jax.Array:
    """The whole sums of a block with t @ b, where it `comes_last`."""
    return y * outer[...] + spans.product(t[...], b[...])


def reference(y: jax.Array, epilogue: Epilogue | None) -> jax.Array:
    """The same for a whole product [M, N], everything in float32."""
    if epilogue is None:
        return y
    t, b, outer = epilogue
    added = jnp.dot(t.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
    return (y if outer is None else y * outer.astype(jnp.float32)) + added


def specs(added: tuple[Any, ...], block: Any, rows: int, columns: int) -> tuple[Any, ...]:
    """The block specifications (`block` makes one) of what `handed` gave, for a grid of rows, columns and depth."""
    if not added:
        return ()
    rank = added[1].shape[0]
    across = tuple(block((array.shape[0], columns), lambda i, j, k: (0, j)) for array in added[1:])
    return block((rows, rank), lambda i, j, k: (i, 0)), *across
