"""y = (codes of x @ w codes) * row scales * column scales, with x rounded to int8 by rows on its way (W8A8), on TPUs.

A row's scale is its largest magnitude over 127, and its codes are x times the inverse, rounded half to even: symmetric
quantization per token, as LLM.int8 and ZeroQuant do it. Fused in front of the product, x is read once in bfloat16 and
its codes are never written: the block of x stays in vector memory, is rounded for the first columns and its codes
serve the others. A Hadamard rotation may come first, as in QuaRot (Ashkboos et al. 2024): a block is rotated where it
is rounded (`hadamard`), in float32 between the two. A `Rule` gives the codes and the scales of a format instead.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.formats import rules
from qjax.kernels.tpu import hadamard, integer_products, tiles
from qjax.kernels.tpu.integer_products import LIMIT, ROWS
from qjax.kernels.tpu.tiles import LANES, Blocks

TOP = 127.0
INFINITE = 0x7F800000  # the bits of infinity: libtpu has no estimate of a maximum of integers across lanes
SMALLEST = 1e-30  # a row's largest magnitude below it counts as zero
STRIP = 512  # columns of x rounded at a time
ROOM = 4 << 20  # bytes of codes of x in vector memory


class Rule(NamedTuple):
    """The scale of a row as a format has it, and its codes: those of `qjax.quantize`, bit for bit.

    scale = largest / divisor, within [least, most], rounded to `stored` ("bfloat16" or "float32"), 1 for zeros; codes =
    x / scale rounded half to even, within [low, high]. Infinities saturate; a NaN makes the scale NaN.
    """

    divisor: float
    low: float
    high: float
    stored: str
    least: float
    most: float

    def scale(self, largest: jax.Array, nan: jax.Array) -> jax.Array:
        """Of rows with these largest magnitudes; `nan`: whether they have one."""
        asked = rules.quotient(jnp.minimum(largest, jnp.float32(rules.F32_MAX)), self.divisor)
        kept = jnp.clip(jnp.where(largest == 0, jnp.float32(1), asked), jnp.float32(self.least), jnp.float32(self.most))
        return jnp.where(nan, jnp.float32(jnp.nan), kept.astype(self.stored).astype(jnp.float32))

    def codes(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        """int8, 0 for NaN."""
        ratio = jnp.clip(rules.quotient(x.astype(jnp.float32), scale), jnp.float32(self.low), jnp.float32(self.high))
        return jnp.round(jnp.where(jnp.isnan(ratio), jnp.float32(0), ratio)).astype(jnp.int8)


def refuse(K: int, N: int, chip: str | None = None, size: int | None = None) -> str | None:
    """Why the kernel cannot run x [M, K] and codes [K, N], on a chip (None: not known), or None.

    `size`: of the blocks of a rotation in front.
    """
    why = integer_products.refuse(K, N, 8, chip)
    return why if why is not None or size is None else hadamard.refuse(K, size)


def blocks(M: int, K: int, N: int, chip: str | None = None) -> Blocks:
    """The blocks taken where none are given: rows of the whole depth, as many as there is room for."""
    most = tiles.largest("dynamic w8a8", M, chip) or Blocks(512, 1024, K)
    rows = min(-(-M // ROWS[8]) * ROWS[8], most.rows, max(ROOM // K // ROWS[8], 1) * ROWS[8])
    columns = tiles.divisor(N, min(most.columns, max((8 << 20) // K, LANES)), LANES)
    return Blocks(rows, columns or LANES, K)


def matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    tiling: Blocks | None = None,
    interpret: Any = False,
    signs: jax.Array | None = None,
    size: int | None = None,
    rule: Rule | None = None,
) -> jax.Array:
    """x [M, K] bfloat16 or float32, rounded to int8 by rows, @ codes [K, N] int8, times the scales -> [M, N] float32.

    scale [N] float32. With a `size`, what is rounded is x times signs [K] (None: 1) and the Hadamard matrix of that
    size, by blocks of channels. M is padded to whole blocks; `tiling` must have the depth K and divide N; `interpret`
    goes to `pallas_call`. Codes and sums are those of `reference`, but for the order of a rotation's own sums. A `rule`
    says how rows are rounded, if not by 127.
    ValueError for what does not fit.
    """
    (M, K), N = x.shape, codes.shape[1]
    why = refuse(K, N, size=size)
    if signs is not None and (size is None or signs.shape != (K,)):
        raise ValueError(f"signs {signs.shape} go with a size and {K} channels")
    if codes.shape[0] != K or scale.shape != (N,) or codes.dtype != jnp.int8 or why is not None:
        raise ValueError(f"x {x.shape}, codes {codes.shape} {codes.dtype} and scale {scale.shape} do not fit: {why}")
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    bm, bn, bk, _ = blocks(M, K, N, tiles.chip()) if tiling is None else tiling
    if bk != K or N % bn:
        raise ValueError(f"blocks of depth {bk} and {bn} columns: {codes.shape} wants the whole depth and a divisor")
    rows = -(-M // bm) * bm
    rotation = [] if size is None else hadamard.operands(signs, x.dtype)
    call = pl.pallas_call(
        functools.partial(_kernel, size=size, rule=rule),
        out_shape=jax.ShapeDtypeStruct((rows, N), jnp.float32),
        grid=(rows // bm, N // bn),
        in_specs=[
            pl.BlockSpec((bm, K), lambda i, j: (i, 0)),
            pl.BlockSpec((K, bn), lambda i, j: (0, j)),
            pl.BlockSpec((1, bn), lambda i, j: (0, j)),
            *(pl.BlockSpec(operand.shape, lambda i, j: (0, 0)) for operand in rotation),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((bm, K), jnp.int8),
            pltpu.VMEM((bm, 1), jnp.float32),
            *([] if size is None else [pltpu.VMEM((ROWS[8], K), jnp.float32)]),
        ],
        # Columns in order: the first of a row of blocks rounds x for the others.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=LIMIT),
        name="dynamic_w8a8" if size is None else "hadamard_w8a8",
        interpret=interpret,
    )
    return call(jnp.pad(x, [(0, rows - M), (0, 0)]), codes, scale.astype(jnp.float32)[None, :], *rotation)[:M]


def scales(largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(scale, its inverse) float32 of rows with these largest magnitudes; both 0 for rows of zeros.

    Below 1e-30 a row counts as zeros, since the inverse would overflow. A row with an infinity or a NaN has
    scale NaN, so that its products are NaN.
    """
    none, fine = largest < SMALLEST, largest < jnp.inf
    inverse = jnp.where(none | ~fine, 0.0, TOP / jnp.where(none, 1.0, largest))
    return jnp.where(fine, jnp.where(none, 0.0, largest * jnp.float32(1 / TOP)), jnp.nan), inverse


def magnitudes(x: jax.Array) -> jax.Array:
    """The bits of |x| in float32 as int32: in the order of the magnitudes, infinity above them and NaN above that."""
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & jnp.int32(0x7FFFFFFF)


def round_rows(x: jax.Array, inverse: jax.Array) -> jax.Array:
    """Codes int8 of x [M, K] under the inverse scales [M, 1] of its rows; anything where the scale is NaN."""
    return jnp.round(x.astype(jnp.float32) * inverse).astype(jnp.int8)


def _kernel(x_ref: Any, w_ref: Any, scale_ref: Any, *refs: Any, size: int | None, rule: Rule | None) -> None:
    """One block of y; strips of rows and columns, so that what is rounded at a time stays in registers."""
    *rotation, y_ref, codes_ref, x_scale_ref = refs if size is None else refs[:-1]
    rows, K = x_ref.shape
    width = tiles.divisor(K, STRIP, LANES) or K
    parts = [slice(start, start + width) for start in range(0, K, width)]
    unit = np.float32(1) if size is None else hadamard.shrink(size)

    def strip(i: Any, carry: None) -> None:
        here = pl.ds(pl.multiple_of(i * ROWS[8], ROWS[8]), ROWS[8])
        source, at = x_ref, here
        if size is not None:
            source, at = refs[-1], slice(None)
            hadamard.transform(x_ref, here, rotation, source, size)
        peak = functools.reduce(jnp.maximum, [magnitudes(source[at, part]) for part in parts])
        largest = jnp.max(lax.bitcast_convert_type(jnp.minimum(peak, INFINITE), jnp.float32), axis=1, keepdims=True)
        if rule is not None:
            marked = jnp.where(peak > INFINITE, jnp.float32(1), jnp.float32(0))
            scale = rule.scale(largest * unit, jnp.max(marked, axis=1, keepdims=True) > 0)
            x_scale_ref[here, :] = scale
            for part in parts:
                codes_ref[here, part] = rule.codes(source[at, part].astype(jnp.float32) * unit, scale)
            return
        scale, inverse = scales(largest)
        x_scale_ref[here, :] = scale * unit
        for part in parts:
            codes_ref[here, part] = round_rows(source[at, part], inverse)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        lax.fori_loop(0, rows // ROWS[8], strip, None)

    sums = jnp.dot(codes_ref[...], w_ref[...], preferred_element_type=jnp.int32)
    y_ref[...] = sums.astype(jnp.float32) * x_scale_ref[...] * scale_ref[...]


def reference(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    signs: jax.Array | None = None,
    size: int | None = None,
    rule: Rule | None = None,
) -> jax.Array:
    """What `matmul` computes, by XLA on any platform and for every size: float32 [M, N]."""
    x, unit = (x, np.float32(1)) if size is None else (hadamard.reference(x, signs, size), hadamard.shrink(size))
    peak = jnp.max(magnitudes(x), axis=1, keepdims=True, initial=0)
    if rule is not None:
        largest = lax.bitcast_convert_type(jnp.minimum(peak, INFINITE), jnp.float32) * unit
        x_scale = rule.scale(largest, peak > INFINITE)
        rounded = rule.codes(x.astype(jnp.float32) * unit, x_scale)
    else:
        x_scale, inverse = scales(lax.bitcast_convert_type(peak, jnp.float32))
        rounded, x_scale = round_rows(x, inverse), x_scale * unit
    return integer_products.reference(rounded, codes, x_scale[:, 0], scale)
