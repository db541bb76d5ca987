"""HQQ: half-quadratic quantization, without data (Badri and Shaji 2023; catalogue E7).

Minimizes Σ φ(W - Ŵ) with φ the l_p "norm", p < 1, which forgives the few large weights their large errors. Split by an
extra variable, with e_t the error and β_t = β·κᵗ:

    E ← shrink(W - Ŵ; β_t),  shrink(x; β) = sign(x)·max(|x| - |x|^(p-1)/β, 0);
    z ← mean over the block of q - (W - E)/s,  with q the codes as they are.

(https://mobiusml.github.io/hqq_blog; the authors' code keeps the scale.) A format without offset has no z: its scale
takes the step, to the least squares of W - E on the codes' values.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax import blocks
from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.qarray import Grid, QArray
from qjax.quantization import dequantize, encode, fit, steps
from qjax.ranges import Range
from qjax.solvers import group_scales


def hqq(
    w: Array,
    fmt: Format | str,
    *,
    p: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
    range: Range | None = None,
) -> QArray:
    """Quantize `w [K, N]` to `fmt`, each block's offset (or scale) moved so that Σ|W - Ŵ|^p is small.

    Of the grids that the `iterations` pass through, each block keeps its best, the first included. The authors' zeros
    are floats: a format with offset "minimum" keeps them, "zero_point" rounds them to codes.

    Raises:
        ValueError: p outside (0, 1], a beta or kappa that is not positive, or a format without scales.
    """
    if not 0 < p <= 1 or beta <= 0 or kappa <= 0:
        raise ValueError(f"hqq: p={p}, beta={beta}, kappa={kappa}; give 0 < p <= 1 and positive beta and kappa")
    f = as_format(fmt)
    if f.scale is None:
        raise ValueError(f"hqq moves scales or offsets, and {f.name} has neither")
    return _hqq(w, fmt=f, p=p, beta=beta, kappa=kappa, iterations=iterations, range=range)


@partial(jax.jit, static_argnames=("fmt", "p", "beta", "kappa", "iterations", "range"))
def _hqq(w: Array, *, fmt: Format, p: float, beta: float, kappa: float, iterations: int, range: Range | None) -> QArray:
    w = w.astype(jnp.float32)
    first, unfitted = fit(w, fmt, axis=-2, range=range), dataclasses.replace(fmt, levels=None)
    meta = first.meta
    padded = blocks.pad(w, meta.padding)
    weights = blocks.pad(jnp.ones_like(w), meta.padding)
    shape = blocks.grid_shape(padded.shape, meta.block)

    def per_block(x: Array) -> Array:
        """Sums over each block of what belongs to the weights themselves."""
        cut, inside = blocks.split(x * weights, meta.block)
        return jnp.sum(cut, axis=inside).reshape(shape)

    def error(q: QArray) -> Array:
        return per_block(jnp.abs(padded - blocks.pad(dequantize(q), meta.padding)) ** p)

    size = per_block(jnp.ones_like(padded))

    def turn(t: Array, state: tuple[Grid, Grid, Array]) -> tuple[Grid, Grid, Array]:
        grid, best, least = state
        q = encode(grid, w)
        r = padded - blocks.pad(dequantize(q), meta.padding)
        strength = beta * jnp.float32(kappa) ** jnp.asarray(t, jnp.float32)
        far = jnp.abs(r)
        kept = jnp.sign(r) * jnp.maximum(far - jnp.where(far > 0, far, 1) ** (p - 1) / strength, 0)
        target = padded - kept
        # The codes' values in units of the scale: those of a grid without scale and offset.
        plain = dataclasses.replace(q, scales=(), offset=None, meta=dataclasses.replace(meta, offset=None))
        unit = blocks.pad(dequantize(plain), meta.padding)
        scale, _ = steps(grid)
        assert scale is not None
        if meta.offset is None:
            uu, ut = per_block(unit * unit), per_block(unit * target)
            step, shift = jnp.where(uu > 0, ut / jnp.where(uu > 0, uu, 1), scale), None
        else:
            spread = blocks.enlarge(scale, padded.shape, meta.block)
            step, shift = scale, per_block(target - spread * unit) / size
        grid = fit(w, unfitted, axis=-2, range=group_scales.asking(fmt, step, shift))
        grid = dataclasses.replace(grid, table=first.table)
        now = error(encode(grid, w))
        better = now < least
        return grid, group_scales.choose_blocks(better, grid, best), jnp.where(better, now, least)

    state = first, first, error(encode(first, w))
    _, best, _ = lax.fori_loop(jnp.int32(0), jnp.int32(iterations), turn, state)
    return encode(best, w)
