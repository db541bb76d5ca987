"""Matmul with four-bit weights on CPU: the kernel of nibble_words.cc, its layout and its reference.

Eight rows of a column are one 32-bit word, 32 columns a tile: words [batch, N / 32, K / 8, 32]. A vector load brings as
many columns as it has lanes, so that unpacking needs no shuffle, and a tile is one run of memory.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qjax.kernels.cpu import building

ROWS = 8  # nibbles of a word, along K
TILE = 32  # columns of a tile
KINDS = {None: 0, "zero_point": 1, "float_zero": 1, "minimum": 2}


class Coding(NamedTuple):
    """What a nibble stands for: code = nibble - center, under the scale s and the offset o of its group.

    A weight is s * code, s * (code - o) for a zero point, s * code + o for a minimum.
    """

    center: int
    offset: str | None = None  # None, "zero_point", "float_zero" or "minimum"


def pack(codes: jax.Array, center: int) -> jax.Array:
    """Integer codes [..., K, N] within -center..15 - center as words [..., N / 32, K / 8, 32], uint32."""
    *batch, K, N = codes.shape
    nibbles = (codes.astype(jnp.int32) + center).astype(jnp.uint32).reshape(*batch, K // ROWS, ROWS, N // TILE, TILE)
    words = functools.reduce(jnp.bitwise_or, [nibbles[..., j, :, :] << jnp.uint32(4 * j) for j in range(ROWS)])
    return jnp.swapaxes(words, -2, -3)


def unpack(words: jax.Array, center: int, dtype: str) -> jax.Array:
    """The inverse of `pack`: codes [..., K, N] of the given dtype."""
    *batch, tiles, rows, _ = words.shape
    nibbles = jnp.stack([words >> jnp.uint32(4 * j) & jnp.uint32(15) for j in range(ROWS)], axis=-2)
    codes = jnp.moveaxis((nibbles.astype(jnp.int32) - center).astype(dtype), -4, -2)  # [..., K / 8, 8, N / 32, 32]
    return codes.reshape(*batch, rows * ROWS, tiles * TILE)


def problem() -> str | None:
    """Why the compiled kernel cannot run on this machine, or None. The first call builds it (some seconds)."""
    return _target()[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def matmul(
    x: jax.Array, words: jax.Array, scale: jax.Array, offset: jax.Array | None, coding: Coding, isa: str = "best"
) -> jax.Array:
    """x [B, M, K] @ W [B, K, N] -> [B, M, N] in float32 by the compiled kernel; scale and offset [B, G, N].

    `isa`: "portable", "avx2", "avx512", "vnni", or the best of them that this processor has. With "vnni" up to four
    rows of x are written as fixed-point numbers of 31 bits under a power of two for each group (nibble_digits.h): no
    more is lost than in adding floats. Gradients reach x, scale and offset, and are those of `reference`. RuntimeError
    where the kernel cannot be built (`problem` says why).
    """
    name, why = _target()
    if why is not None:
        raise RuntimeError(why)
    shape = jax.ShapeDtypeStruct((*x.shape[:2], words.shape[1] * TILE), jnp.float32)
    kernel = jax.ffi.ffi_call(name, shape, vmap_method="sequential")
    if scale.dtype != jnp.bfloat16:
        scale = scale.astype(jnp.float32)
    shift = jnp.zeros((0,), jnp.float32) if offset is None else offset.astype(jnp.float32)
    attributes = {"center": np.float32(coding.center), "kind": np.int64(KINDS[coding.offset]), "isa": isa}
    return kernel(x.astype(jnp.float32), words, scale, shift, **attributes)


def _forward(
    x: jax.Array, words: jax.Array, scale: jax.Array, offset: jax.Array | None, coding: Coding, isa: str
) -> tuple[jax.Array, tuple]:
    return matmul(x, words, scale, offset, coding, isa), (x, words, scale, offset)


def _backward(coding: Coding, isa: str, kept: tuple, dy: jax.Array) -> tuple:
    x, words, scale, offset = kept
    _, pull = jax.vjp(lambda x, scale, offset: reference(x, words, scale, offset, coding), x, scale, offset)
    dx, d_scale, d_offset = pull(dy)
    return dx, np.zeros(words.shape, jax.dtypes.float0), d_scale, d_offset


matmul.defvjp(_forward, _backward)


def reference(x: jax.Array, words: jax.Array, scale: jax.Array, offset: jax.Array | None, coding: Coding) -> jax.Array:
    """What `matmul` computes, with the whole weight dequantized."""
    codes = unpack(words, coding.center, "float32")
    K = codes.shape[1]

    def spread(a: jax.Array) -> jax.Array:
        return jnp.repeat(a.astype(jnp.float32), K // a.shape[1], axis=1)

    if offset is None:
        W = codes * spread(scale)
    elif coding.offset == "minimum":
        W = codes * spread(scale) + spread(offset)
    else:
        W = (codes - spread(offset)) * spread(scale)
    return jnp.einsum("bmk,bkn->bmn", x.astype(jnp.float32), W, precision="highest")


@functools.cache
def _target() -> tuple[str, str | None]:
    """The name under which XLA finds the kernel, and why it cannot."""
    name = "qjax_nibble_words"
    library, why = building.load("nibble_words")
    if library is not None:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library.QjaxNibbleWords), platform="cpu")
    return name, why
