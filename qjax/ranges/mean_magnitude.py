"""Scales that are a mean magnitude: signs and ternary numbers (catalogue K1, K2)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.ranges.moments import mean, relative
from qjax.ranges.range import Project, symmetric
from qjax.ranges.reductions import ends, largest_magnitude


def absmean(
    x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
) -> tuple[Array, Array]:
    """The range whose scale is alpha = mean|x| of each block; one bit with a minimum: mu -+ mean|x - mu|, mu = mean(x).

    "binary" then is alpha sign(w), whose least squares alpha that is (XNOR-Net, Rastegari et al. 2016,
    arXiv:1603.05279, eq. 6); "int1_minimum" is mu + alpha sign(w - mu); "int2_narrow" is clip(round(w/alpha), -1, 1) of
    BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764, eq. 1-3). A block with an infinity keeps its whole range.

    Raises ValueError for a format whose largest value is not 1: a mean would clip nearly half of the others' range.
    """
    two_values = isinstance(fmt.element, Int) and fmt.element.bits == 1 and fmt.offset == "minimum"
    if not (two_values or (symmetric(fmt) and fmt.rule == "absmax" and (fmt.reach or fmt.element.max) == 1)):
        raise ValueError(
            f"absmean is for values of -1, 0 and 1 (binary, int2_narrow, int1_minimum), not for {fmt.name}"
        )
    whole = largest_magnitude(x, axes) if symmetric(fmt) else ends(x, axes)
    _, reach = largest_magnitude(x, axes)
    size = relative(x, reach)
    center = mean(size, axes, weights) if two_values else jnp.zeros_like(reach)
    spread = mean(jnp.abs(size - center), axes, weights)
    found = jnp.isfinite(reach) & jnp.isfinite(spread)  # else an infinity, a NaN, or nothing weighs
    low, high = ((center + sign * spread) * reach for sign in (-1, 1))
    return jnp.where(found, low, whole[0]), jnp.where(found, high, whole[1])
