"""Cutting the core axes of an array into blocks, and putting them together again."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import FULL

Block = tuple[int, ...]


def padding_for(core_shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Elements each core axis lacks to hold whole blocks."""
    return tuple(0 if b == FULL else -n % b for n, b in zip(core_shape, block, strict=True))


def pad(x: Array, padding: tuple[int, ...], mode: str = "constant") -> Array:
    """`x` with `padding` added at the end of its last axes (zeros, or the last value with mode="edge")."""
    if not any(padding):
        return x
    widths = [(0, 0)] * (x.ndim - len(padding)) + [(0, p) for p in padding]
    return jnp.pad(x, widths, mode=mode)


def unpad(x: Array, padding: tuple[int, ...]) -> Array:
    """The inverse of `pad`."""
    if not any(padding):
        return x
    batch = x.ndim - len(padding)
    return x[(slice(None),) * batch + tuple(slice(0, n - p) for n, p in zip(x.shape[batch:], padding, strict=True))]


def split(x: Array, block: Block) -> tuple[Array, tuple[int, ...]]:
    """The core axes cut into (blocks, elements) where that means something, and the axes inside a block.

    A core axis of block 1 or one whole block stays a single axis; the returned axes are negative. Reducing over them
    with keepdims gives the shape that `spread` makes of one value per block, which broadcasts against the split array.
    """
    batch = x.ndim - len(block)
    shape, inside = list(x.shape[:batch]), []
    for n, b in zip(x.shape[batch:], block, strict=True):
        if b in (FULL, n):
            inside.append(len(shape))
            shape.append(n)
        elif b == 1:
            shape.append(n)
        else:
            inside.append(len(shape) + 1)
            shape += [n // b, b]
    return x.reshape(shape), tuple(i - len(shape) for i in inside)


def spread(per_block: Array, core_shape: tuple[int, ...], block: Block, trailing: int = 0) -> Array:
    """One value per block [batch..., blocks of each core axis] in the shape that broadcasts against `split`.

    `trailing` axes at the end belong to the value (the levels of a table) and stay.
    """
    batch = per_block.ndim - len(block) - trailing
    shape = list(per_block.shape[:batch])
    for blocks, n, b in zip(per_block.shape[batch : batch + len(block)], core_shape, block, strict=True):
        shape += [blocks] if b in (FULL, n, 1) else [blocks, 1]
    return per_block.reshape(*shape, *per_block.shape[batch + len(block) :])


def grid_shape(core_shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Blocks along each (padded) core axis."""
    return tuple(1 if b == FULL else -(-n // b) for n, b in zip(core_shape, block, strict=True))


def enlarge(per_block: Array, core_shape: tuple[int, ...], block: Block) -> Array:
    """One value per block repeated to one per element, [batch..., core_shape]."""
    batch = per_block.shape[: per_block.ndim - len(block)]
    x = spread(per_block, core_shape, block)
    full = []
    for n, b in zip(core_shape, block, strict=True):
        full += [n] if b in (FULL, n, 1) else [n // b, b]
    return jnp.broadcast_to(x, (*batch, *full)).reshape(*batch, *core_shape)
