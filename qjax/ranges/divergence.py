"""KL calibration: the clip whose quantized histogram diverges least from the histogram (catalogue B4).

Migacz, "8-bit inference with TensorRT", GTC 2017. Of a histogram of |x|, the first i bins with everything beyond added
to the last are P; the same bins without it, merged into as many levels as the integer has magnitudes and spread evenly
over those bins of a level that are not empty, are Q; the i with the least KL(P || Q) is the clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.ranges.moments import integer, within
from qjax.ranges.quantiles import inside_last
from qjax.ranges.range import Project, symmetric
from qjax.ranges.reductions import ends, largest_magnitude


@dataclass(frozen=True)
class entropy:
    """The clip of least divergence, -clip, clip or as much of it as the values need; for integer elements.

    `bins`: at least that many equal bins reach from zero to a block's largest magnitude (TensorRT's 2048). Their width
    is a power of two, so that histograms of batches merge exactly (`qjax.statistics.Histogram`). For tensors and
    channels: it takes time and memory of `bins` a block, and blocks of fewer values than levels are refused.
    """

    bins: int = 2048
    summary: ClassVar[str] = "histogram"

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"entropy: bins must be at least 2, got {self.bins}")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        element = integer("entropy", fmt)
        one_sided = fmt.offset is None and element.min >= 0
        levels = 2 ** (element.bits if one_sided else element.bits - 1)
        count = math.prod(x.shape[a] for a in axes)
        if max(levels, 2) > min(self.bins, count):
            raise ValueError(
                f"entropy: {levels} levels of {fmt.name} in blocks of {count} values and {self.bins} bins: it needs as "
                "many of both; ranges.mse and ranges.percentile serve short blocks"
            )
        size = jnp.abs(x)
        _, reach = largest_magnitude(x, axes)
        _, exponent = jnp.frexp(reach)
        place = jnp.floor(jnp.ldexp(size, -exponent) * jnp.float32(2 * self.bins))
        place = jnp.where(jnp.isfinite(reach), place, jnp.zeros_like(place)).astype(jnp.int32)
        rows = inside_last(place, axes)
        mass = jnp.ones_like(rows, jnp.float32)
        if weights is not None:
            mass = inside_last(jnp.broadcast_to(weights, x.shape), axes)
        index = divergence_argmin(_histogram(rows, mass, 2 * self.bins), levels).reshape(reach.shape)
        clip = jnp.ldexp(index.astype(jnp.float32) / jnp.float32(2 * self.bins), exponent)
        high = within(jnp.where(jnp.isfinite(reach), clip, reach), reach)
        if symmetric(fmt):
            return -high, high
        least, largest = ends(x, axes)
        return jnp.maximum(least, -high), jnp.minimum(largest, high)


def _histogram(place: Array, mass: Array, bins: int) -> Array:
    """Counts [..., bins] of rows [..., n]."""
    flat = place.reshape(-1, place.shape[-1])
    counts = jax.vmap(lambda i, w: jnp.zeros(bins, jnp.float32).at[i].add(w))(flat, mass.reshape(flat.shape))
    return counts.reshape(*place.shape[:-1], bins)


def divergence_argmin(counts: Array, levels: int) -> Array:
    """How many bins of `counts` [..., bins] (float32) to keep, int32 [...]: between `levels` and the last nonempty one.

    Of equal divergences the widest. Where no number of bins has a finite one, all bins.
    """
    bins = counts.shape[-1]
    here = jnp.arange(bins, dtype=jnp.int32).reshape((1,) * (counts.ndim - 1) + (bins,))
    filled = counts > 0
    total = jnp.sum(counts, axis=-1, keepdims=True)
    last = jnp.max(jnp.where(filled, here, -1), axis=-1)
    beyond = jnp.flip(jnp.cumsum(jnp.flip(counts, -1), axis=-1), -1)  # of bin i and all above it
    beyond = jnp.concatenate([beyond, jnp.zeros_like(total)], axis=-1)

    def divergence(i: Array) -> Array:
        inside = here < i
        level = jnp.where(inside, here * levels // i, levels)
        level = level.reshape(-1)  # the same for all histograms
        mass, some = (
            jnp.zeros((*counts.shape[:-1], levels + 1), jnp.float32).at[..., level].add(v)
            for v in (counts, filled.astype(jnp.float32))
        )
        q = jnp.where(filled & inside, jnp.take(mass / jnp.maximum(some, 1), level, axis=-1), 0.0)
        tail = lax.dynamic_index_in_dim(beyond, i, axis=-1)
        p = jnp.where(inside, counts, 0.0) + jnp.where(here == i - 1, tail, jnp.zeros_like(tail))
        ratio = (p / jnp.where(q > 0, q, 1.0)) * (jnp.sum(q, axis=-1, keepdims=True) / total)
        term = jnp.where(q > 0, p / total * jnp.log(jnp.where(p > 0, ratio, 1.0)), jnp.inf)
        kl = jnp.sum(jnp.where(p > 0, term, 0.0), axis=-1)
        return jnp.where(i <= last + 1, kl, jnp.inf)

    def body(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        kl = divergence(i)
        better = (kl <= best[0]) & (kl < jnp.inf)
        return jnp.where(better, kl, best[0]), jnp.where(better, i, best[1])

    least = jnp.full(counts.shape[:-1], jnp.inf, jnp.float32)
    return lax.fori_loop(levels, bins + 1, body, (least, jnp.full(counts.shape[:-1], bins, jnp.int32)))[1]
