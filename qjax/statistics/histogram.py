"""Histograms that need no first pass: their bins reach to 2^k, and k grows with the entries.

Bins lie symmetrically about zero up to 2^k, the least power of two above every magnitude seen; k is part of the value.
When a larger entry comes, each bin is poured into the one that covers it on the wider grid, where its entries would
have fallen too. So a histogram depends on the entries alone, not on how they were split, and histograms merge exactly.
Entries that are not finite weigh nothing; `Min` and `Max` tell of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax.statistics.points import Points
from qjax.statistics.statistic import row_weights

_LEAST = -126  # the exponent before any entry: nothing but zero lies below 2^-126
_EXACT = 2**22  # entries that one float32 counter takes in one by one


class Counts(NamedTuple):
    """exponent: int32 [*batch], k; counts: float32 [*batch, bins], by channel [*batch, K, bins], from -2^k to 2^k."""

    exponent: jax.Array
    counts: jax.Array


@dataclass(frozen=True)
class Even:
    """Equal bins, of which at least `bins` reach from zero to the largest magnitude."""

    bins: int = 2048

    @property
    def size(self) -> int:
        """Bins on each side of zero."""
        return 2 * self.bins

    @property
    def parts(self) -> int:
        """Points that stand for one bin."""
        return 1

    def place(self, a: jax.Array, exponent: jax.Array) -> jax.Array:
        """The bin of magnitudes a < 2^exponent."""
        return jnp.floor(jnp.ldexp(a, -exponent) * jnp.float32(self.size)).astype(jnp.int32)

    def coarser(self, j: jax.Array, steps: jax.Array) -> jax.Array:
        """The bin that covers bin j when the exponent is `steps` greater."""
        return j >> jnp.minimum(steps, 31)

    def values(self, exponent: jax.Array) -> jax.Array:
        """A value of each bin, its middle, [size * parts]."""
        return jnp.ldexp((jnp.arange(self.size, dtype=jnp.float32) + 0.5) / jnp.float32(self.size), exponent)


@dataclass(frozen=True)
class Octaves:
    """2^bits bins in each of the `count` octaves below 2^k, equal within their octave; what lies below them is zero.

    A value is known to 2^-bits of its size, so that a few huge entries do not blur the others, as equal bins do.
    """

    count: int = 32
    bits: int = 4

    @property
    def size(self) -> int:
        """Bins on each side of zero: the first is zero's."""
        return self.count * 2**self.bits + 1

    @property
    def parts(self) -> int:
        """Points that stand for one bin."""
        return 4

    def place(self, a: jax.Array, exponent: jax.Array) -> jax.Array:
        """The bin of magnitudes a < 2^exponent."""
        pattern = lax.bitcast_convert_type(a, jnp.int32) >> (23 - self.bits)
        return jnp.clip(pattern - self._first(exponent) + 1, 0, self.size - 1)

    def coarser(self, j: jax.Array, steps: jax.Array) -> jax.Array:
        """The bin that covers bin j when the exponent is `steps` greater."""
        return jnp.maximum(j - (steps << self.bits), 0)

    def values(self, exponent: jax.Array) -> jax.Array:
        """Values of each bin, evenly within it, [size * parts]."""
        j, part = jnp.divmod(jnp.arange(self.size * self.parts, dtype=jnp.int32), self.parts)
        width = 1 << (23 - self.bits)
        pattern = (self._first(exponent) + j - 1) * width + (2 * part + 1) * (width // (2 * self.parts))
        return lax.bitcast_convert_type(jnp.where((j > 0) & (pattern > 0), pattern, 0), jnp.float32)

    def _first(self, exponent: jax.Array) -> jax.Array:
        """The leading bits of the least float32 in the first octave."""
        return (exponent + 127 - self.count) << self.bits


@dataclass(frozen=True)
class Histogram:
    """How many entries lie in each bin of a grid, `Even` or `Octaves`: of all channels together or by channel.

    A weight of a token weighs its entries. See `points` for what ranges are estimated from.
    """

    grid: Even | Octaves = Even()
    by_channel: bool = False

    @property
    def name(self) -> str:
        return "histogram" if isinstance(self.grid, Even) else "log_histogram"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> Counts:
        rows = (features,) if self.by_channel else ()
        counts = jnp.zeros((*batch, *rows, 2 * self.grid.size), jnp.float32)
        return Counts(jnp.full(batch, _LEAST, jnp.int32), counts)

    def update(self, value: Counts, x: jax.Array, weights: jax.Array | None = None) -> Counts:
        measure = self._measure
        for _ in range(x.ndim - 2):
            measure = jax.vmap(measure)
        return self.merge(value, measure(x.astype(jnp.float32), row_weights(x, weights)))

    def merge(self, a: Counts, b: Counts) -> Counts:
        exponent = jnp.maximum(a.exponent, b.exponent)
        pour = self._poured
        for _ in range(exponent.ndim):
            pour = jax.vmap(pour)
        return Counts(exponent, pour(a.counts, exponent - a.exponent) + pour(b.counts, exponent - b.exponent))

    def result(self, value: Counts) -> Counts:
        return value

    def points(self, value: Counts) -> Points:
        """The bins as weighted values; all channels share them."""
        values = self.grid.values
        for _ in range(value.exponent.ndim):
            values = jax.vmap(values)
        one_side = values(value.exponent)
        x = jnp.concatenate([-jnp.flip(one_side, -1), one_side], axis=-1)[..., None]
        counts = value.counts if self.by_channel else value.counts[..., None, :]
        weights = jnp.repeat(counts / self.grid.parts, self.grid.parts, axis=-1)
        return Points.of(x, jnp.swapaxes(weights, -1, -2))

    def _measure(self, x: jax.Array, w: jax.Array) -> Counts:
        """The histogram of rows x [tokens, K] with weights [tokens]."""
        w = jnp.where(jnp.isfinite(x), w[:, None], jnp.float32(0))
        a = jnp.where(w > 0, jnp.abs(x), jnp.float32(0))
        top = jnp.max(a, initial=0.0)
        exponent = jnp.where(top > 0, jnp.frexp(top)[1], _LEAST)
        j = self.grid.place(a, exponent)
        bins = 2 * self.grid.size
        index = jnp.where(x < 0, self.grid.size - 1 - j, self.grid.size + j)
        if self.by_channel:
            groups = x.shape[-1]
            row = jnp.broadcast_to(jnp.arange(groups, dtype=jnp.int32)[None], x.shape)
        else:  # several counters a bin: one of float32 stops at 2^24 when ones are added to it
            groups = 1 + x.size // _EXACT
            row = jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape) % groups
        flat = jnp.zeros(groups * bins, jnp.float32).at[(row * bins + index).reshape(-1)].add(w.reshape(-1))
        counts = flat.reshape(groups, bins)
        return Counts(exponent, counts if self.by_channel else jnp.sum(counts, axis=0))

    def _poured(self, counts: jax.Array, steps: jax.Array) -> jax.Array:
        """Counts [..., bins] on the grid whose exponent is `steps` greater."""
        size, i = self.grid.size, np.arange(2 * self.grid.size, dtype=np.int32)
        j = self.grid.coarser(jnp.asarray(np.where(i < size, size - 1 - i, i - size)), steps)
        target = jnp.where(jnp.asarray(i < size), size - 1 - j, size + j)
        return jnp.zeros_like(counts).at[..., target].add(counts)
