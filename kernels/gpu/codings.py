"""Codes of weights as they lie for WGMMA, and how they become bfloat16 in the registers of its first operand.

A pair of codes ends in the halves of one register. A word therefore holds, in its halves, the codes of several pairs;
masks and shifts of whole words bring one pair after another to where its bits are two bfloat16 numbers, from which one
operation on pairs makes the codes' values, exactly (the trick of Kim et al. 2022, arXiv:2211.10017). The order of codes
is such that nothing is exchanged between lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from qjax.formats import elements

Halves = Callable[[Sequence[jax.Array]], Any]  # int32 [outputs, n] each -> the bfloat16 in their bits, side by side


class Coding(NamedTuple):
    """How codes of so many bits lie in an array of `dtype`.

    operand : (words int32 [outputs, n], `halves`) -> what the tensor core takes, [outputs, 32 n / bits].
    decode  : codes [K, N] -> their values as float32; for the reference.
    """

    name: str
    bits: int
    dtype: Any
    operand: Callable[[jax.Array, Halves], Any]
    decode: Callable[[jax.Array], jax.Array]

    @property
    def lanes(self) -> int:
        """Codes in one entry of the array."""
        return 8 * jnp.dtype(self.dtype).itemsize // self.bits


def pack(codes: jax.Array, step: int, coding: Coding) -> jax.Array:
    """Codes [..., K, N] as [..., K / step, N, step / lanes] of the coding's dtype; step 64 or 128.

    Word j has at bits (bits i) of its halves the codes 2 j and 2 j + 1 of part i of its step, which has 16 / bits
    parts. Bytes lie as those of the words do, the lowest first.
    """
    *batch, K, N = codes.shape
    bits = coding.bits
    split = codes.reshape(*batch, K // step, 16 // bits, step * bits // 32, 2, N)
    if coding.lanes == 1:
        return jnp.moveaxis(split, (-4, -1), (-1, -4)).reshape(*batch, K // step, N, step).astype(coding.dtype)
    fields = split.astype(jnp.int32) & (2**bits - 1)
    return jnp.moveaxis((fields << _shifts(fields.shape, bits)).sum((-4, -2), dtype=jnp.int32), -2, -1)


def unpack(stored: jax.Array, coding: Coding, dtype: str) -> jax.Array:
    """The inverse of `pack`: codes [..., K, N] of the given dtype; those of four bits are signed."""
    *batch, steps, N, count = stored.shape
    step, bits = count * coding.lanes, coding.bits
    if coding.lanes == 1:
        split = jnp.moveaxis(stored.reshape(*batch, steps, N, step // 4, 2, 2), (-4, -1), (-1, -4))
        return split.astype(dtype).reshape(*batch, steps * step, N)
    shape = (*batch, steps, 16 // bits, count, 2, N)
    spread = jnp.broadcast_to(jnp.moveaxis(stored, -1, -2)[..., None, :, None, :], shape)
    sign = 2 ** (bits - 1)
    codes = ((spread >> _shifts(shape, bits) & (2 * sign - 1)) ^ sign) - sign
    return codes.astype(dtype).reshape(*batch, steps * step, N)


def arranged(x: jax.Array, step: int) -> jax.Array:
    """x [M, K] with its depth in the order in which `pack` puts bytes: for products that take them as they lie."""
    M, K = x.shape
    return jnp.moveaxis(x.reshape(M, K // step, 2, step // 4, 2), 2, -1).reshape(M, K)


def _shifts(shape: tuple[int, ...], bits: int) -> jax.Array:
    """Where in its word every code of [..., parts, words, 2, N] begins."""
    part, half = (lax.broadcasted_iota(jnp.int32, shape, len(shape) + axis) for axis in (-4, -2))
    return bits * part + 16 * half


def _int4(words: jax.Array, halves: Halves) -> Any:
    """Two nibbles under the exponent of 128 count from there; with flipped signs two's complement counts from -8."""
    pairs = [(((words >> 4 * i) if i else words) & 0x000F000F) ^ 0x43084308 for i in range(4)]
    return halves(pairs) - 136.0


def _int8(words: jax.Array, halves: Halves) -> Any:
    """Seven bits under the exponent of 128; the sign, put where that exponent is even, makes 256 of what is taken away.

    So 128 + code mod 128 is relieved of 128, or of 256 where the code is negative.
    """
    both = [words, words >> 8]
    counted = halves([(w & 0x007F007F) | 0x43004300 for w in both])
    return counted - halves([(w & 0x00800080) | 0x43004300 for w in both])


def _e4m3(words: jax.Array, halves: Halves) -> Any:
    """The bits of E4M3 under the longer exponent of bfloat16 are 2^-120 times the value, subnormals included.

    NaN, which has all bits of E4M3 set, becomes 480.
    """
    pairs = [((w >> 4) & 0x07F007F0) | (w & -0x7FFF8000) for w in (words << 8, words)]
    return halves(pairs) * 2.0**120


def _integers(codes: jax.Array) -> jax.Array:
    return codes.astype(jnp.float32)


INT4 = Coding("w4a16", 4, jnp.int32, _int4, _integers)
INT8 = Coding("w8a16", 8, jnp.int8, _int8, _integers)
E4M3 = Coding("e4m3a16", 8, jnp.uint8, _e4m3, elements.E4M3.decode)


def operand(stored: jax.Array, coding: Coding, interpret: bool) -> jax.Array:
    """Entries [outputs, step / lanes] as bfloat16 values [outputs, step], in the layout of WGMMA's first operand."""
    if interpret:
        if coding.lanes == 1:
            stored = lax.bitcast_convert_type(stored.reshape(stored.shape[0], -1, 4), jnp.int32)
        return coding.operand(stored, halves_plain)
    words = _words_of_bytes(stored) if coding.lanes == 1 else plgpu.layout_cast(stored, _layout(1))
    return coding.operand(words, _halves_in_registers)


def halves_plain(pairs: Sequence[jax.Array]) -> jax.Array:
    """The bfloat16 pairs in the bits of int32 [outputs, n] each: [outputs, 2 n] each, side by side."""
    outputs, n = pairs[0].shape
    return jnp.concatenate([lax.bitcast_convert_type(p, jnp.bfloat16).reshape(outputs, 2 * n) for p in pairs], axis=1)


def _halves_in_registers(pairs: Sequence[jax.Array]) -> jax.Array:
    """That for words in `_layout(1)`, whose registers are those of WGMMA's operand: they change name alone."""
    from jax.experimental.mosaic import gpu as mgpu
    from jax.experimental.mosaic.gpu.utils import bitcast
    from jaxlib.mlir import ir

    outputs, n = pairs[0].shape
    wgmma = plgpu.Layout.WGMMA

    @plgpu.inline_mgpu(
        arg_types=(_layout(1),) * len(pairs),
        return_type=plgpu.ShapeDtypeStruct((outputs, 2 * n * len(pairs)), jnp.dtype(jnp.bfloat16), layout=wgmma),
    )
    def rename(_: Any, *words: Any) -> Any:
        pair = ir.VectorType.get((2,), ir.BF16Type.get())
        shape = wgmma.to_mgpu().registers_shape((outputs, 2 * n))
        halves = [np.array([bitcast(r, pair) for r in w.registers.flat], object).reshape(shape) for w in words]
        return mgpu.FragmentedArray(_registers=np.concatenate(halves, 1), _layout=wgmma.to_mgpu(), _is_signed=None)

    return rename(*pairs)


def _words_of_bytes(stored: jax.Array) -> jax.Array:
    """Bytes [outputs, 4 n] as int32 words [outputs, n] in `_layout(1)`: four bytes of a lane are its word."""
    from jax.experimental.mosaic import gpu as mgpu
    from jax.experimental.mosaic.gpu.utils import bitcast
    from jaxlib.mlir import ir

    outputs, count = stored.shape

    @plgpu.inline_mgpu(
        arg_types=(_layout(4),),
        return_type=plgpu.ShapeDtypeStruct((outputs, count // 4), jnp.dtype(jnp.int32), layout=_layout(1)),
    )
    def rename(_: Any, *arrays: Any) -> Any:
        word = ir.VectorType.get((1,), ir.IntegerType.get_signless(32))
        shape = _layout(1).to_mgpu().registers_shape((outputs, count // 4))
        words = np.array([bitcast(r, word) for r in arrays[0].registers.flat], object).reshape(shape)
        return mgpu.FragmentedArray(_registers=words, _layout=_layout(1).to_mgpu(), _is_signed=True)

    arrays = (plgpu.layout_cast(stored, _layout(4)),)
    return rename(*arrays)


def _layout(entries: int) -> Any:
    """WGMMA's layout of 16-bit operands with so many entries for every pair: [64, 4] words lie as [64, 8] halves do."""
    wide = 4 * entries
    tiling = plgpu.Tiling(((64, wide), (16, wide), (8, wide), (entries,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-7,), lane_dims=(-3, -2), vector_dim=-1)
