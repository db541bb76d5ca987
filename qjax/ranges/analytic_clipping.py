"""ACIQ: the clip that balances rounding against clipping noise of a fitted distribution (catalogue B12).

Banner et al., NeurIPS 2019 (arXiv:1810.05723). A grid of 2^M steps over [-a, a] has rounding noise a^2 / (3 4^M), and
clipping leaves 2 int_a^inf f(x) (x - a)^2 dx; the clip is where the derivative of their sum is zero, in units of the
distribution's spread: b = E|x - mu| for Laplace, sigma for a Gaussian.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.ranges.moments import integer, mean, relative, root, within
from qjax.ranges.range import Project, symmetric
from qjax.ranges.reductions import ends

Prior = Literal["laplace", "gaussian"]


@functools.cache
def clip(prior: Prior, bits: int) -> float:
    """The clip a of 2^bits steps over [-a, a] for unit spread.

    Laplace: -2 e^-a + 2a / (3 4^bits) = 0. Gaussian: 4 (a Q(a) - phi(a)) + 2a / (3 4^bits) = 0.

    >>> [[round(clip(prior, bits), 2) for bits in (2, 3, 4)] for prior in ("laplace", "gaussian")]
    [[2.83, 3.9, 5.03], [1.71, 2.15, 2.56]]
    """
    steps = 3 * 4.0**bits
    if prior == "laplace":
        return root(lambda a: 2 * a / steps - 2 * math.exp(-a), 0.0, 60.0)
    normal = NormalDist()
    return root(lambda a: 2 * a / steps - 4 * (normal.pdf(a) - a * normal.cdf(-a)), 0.0, 30.0)


@dataclass(frozen=True)
class aciq:
    """mean +- `clip` times the spread of a block, within its values; for integer elements.

    `prior`: the distribution assumed. A symmetric format reaches |mean| + clip; an unsigned one without an offset holds
    one-sided values, whose 2^b steps are half as wide: the clip of b + 1 bits. Constant blocks keep their range.
    """

    prior: Prior = "laplace"

    def __post_init__(self) -> None:
        if self.prior not in ("laplace", "gaussian"):
            raise ValueError(f"aciq: prior {self.prior!r} is neither 'laplace' nor 'gaussian'")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        element = integer("aciq", fmt)
        least, largest = ends(x, axes)
        reach = jnp.maximum(-least, largest)
        unit = relative(x, reach)
        center = mean(unit, axes, weights)
        off = jnp.abs(unit - center)
        spread = mean(off, axes, weights) if self.prior == "laplace" else jnp.sqrt(mean(off * off, axes, weights))
        one_sided = fmt.offset is None and element.min >= 0
        width = jnp.float32(clip(self.prior, element.bits + one_sided)) * spread * reach
        center = center * reach
        if symmetric(fmt):
            # Where the spread is nothing there is no distribution to clip.
            high = within(jnp.where(width > 0, jnp.abs(center) + width, reach), reach)
            return -high, high
        known = (width > 0) & (width < jnp.inf)
        low = jnp.where(known, jnp.maximum(least, center - width), least)
        return low, jnp.where(known, jnp.minimum(largest, center + width), largest)


def bit_allocation(clips: Array, bits: float) -> Array:
    """Bits for each of n channels with clips `clips` [n] (float32), so that all their bins together are n 2^bits.

    log2(n 2^bits p_i) with p_i the share of clip_i^(2/3): minimizes sum clip_i^2 / (3 4^bits_i). Real numbers; the
    paper rounds them (section 3.2). A channel of clip 0 gets -inf.

    >>> bit_allocation(jnp.array([1.0, 1.0, 8.0]), 4.0).tolist()
    [3.0, 3.0, 5.0]
    """
    power = jnp.cbrt(clips * clips)
    return jnp.log2(power / jnp.sum(power)) + jnp.float32(math.log2(clips.size) + bits)


def correction(w: Array, rounded: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """gain and shift such that gain * rounded + shift has the mean and the variance of `w` over `axes` (kept).

    The paper's bias correction (section 3.3) writes gain * (rounded + E[w] - E[rounded]), which moves the mean by the
    gain; here it is kept. A channel whose rounded values do not vary has gain 1.
    """
    means = [jnp.mean(v, axis=axes, keepdims=True) for v in (w, rounded)]
    size, now = (jnp.sum((v - m) ** 2, axis=axes, keepdims=True) for v, m in zip((w, rounded), means, strict=True))
    gain = jnp.where(now > 0, jnp.sqrt(size / jnp.where(now > 0, now, jnp.float32(1))), jnp.float32(1))
    return gain, means[0] - gain * means[1]
