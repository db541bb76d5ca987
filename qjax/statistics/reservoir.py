"""A sample of tokens that merges: the k distinct rows of smallest hash (bottom-k sampling, Cohen and Kaplan 2007).

A row's hash depends on its content and the seed alone, so the sample does not depend on how tokens were split or
ordered, and merging is idempotent. Equal rows (the first token of every window) count once: the draw is uniform over
distinct rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax.statistics.points import Points

_LAST = np.uint32(0xFFFFFFFF)  # the hash of an empty slot


class Sample(NamedTuple):
    """hashes: uint32 [*batch, 2, k] ascending (an empty slot holds 2**32 - 1); rows: float32 [*batch, k, K]."""

    hashes: jax.Array
    rows: jax.Array

    @property
    def filled(self) -> jax.Array:
        """Slots [*batch, k] (bool) that hold a token."""
        return self.hashes[..., 0, :] != _LAST


def _mix(h: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: every input bit reaches every output bit."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def _hash(x: jax.Array, seed: int) -> jax.Array:
    """uint32 [2, tokens]: two hashes of each row, together 64 bits."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, jnp.float32(0), x), jnp.uint32)  # -0.0 is 0.0
    drawn = np.random.default_rng(seed).integers(0, 2**32, (2, x.shape[-1] + 1), dtype=np.uint32)
    multipliers, start = drawn[:, 1:] | np.uint32(1), drawn[:, :1]  # start: a row of zeros is not special
    mixed = _mix(bits)[None]  # first: a bfloat16's low bits are all zero, a plain sum would stay coarse
    h = _mix((mixed * jnp.asarray(multipliers)[:, None, :]).sum(-1, dtype=jnp.uint32) + jnp.asarray(start))
    return jnp.minimum(h, _LAST - np.uint32(1))


def _bottom(hashes: jax.Array, x: jax.Array, k: int) -> Sample:
    """The k smallest distinct hashes of [2, n] with their rows."""
    n = hashes.shape[-1]
    first, second, order = lax.sort((hashes[0], hashes[1], jnp.arange(n, dtype=jnp.int32)), num_keys=2)
    again = (first[1:] == first[:-1]) & (second[1:] == second[:-1])
    again = jnp.concatenate([jnp.zeros((1,), bool), again])
    first, second = jnp.where(again, _LAST, first), jnp.where(again, _LAST, second)
    first, second, order = (a[:k] for a in lax.sort((first, second, order), num_keys=2))
    picked = jnp.where((first != _LAST)[:, None], x[order], jnp.zeros((), jnp.float32))
    pad = k - picked.shape[0]
    return Sample(
        jnp.pad(jnp.stack([first, second]), ((0, 0), (0, pad)), constant_values=_LAST),
        jnp.pad(picked, ((0, pad), (0, 0))),
    )


@dataclass(frozen=True)
class Reservoir:
    """`size` tokens drawn uniformly from the distinct rows seen; `seed` names the draw.

    With `largest` (the statistic "largest") they are not drawn but those of largest max |x|: where outliers are.
    """

    size: int = 64
    seed: int = 0
    largest: bool = False

    @property
    def name(self) -> str:
        return "largest" if self.largest else "reservoir"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> Sample:
        return Sample(
            jnp.full((*batch, 2, self.size), _LAST, jnp.uint32), jnp.zeros((*batch, self.size, features), jnp.float32)
        )

    def update(self, value: Sample, x: jax.Array, weights: jax.Array | None = None) -> Sample:
        def measure(x: jax.Array, weights: jax.Array | None) -> Sample:
            x = x.astype(jnp.float32)
            hashes = _hash(x, self.seed)
            if self.largest:  # ascending by the complement of the size's bits, whose order is that of the sizes
                size = lax.bitcast_convert_type(jnp.max(jnp.abs(x), axis=-1), jnp.uint32)
                hashes = jnp.stack([np.uint32(0x7FFFFFFF) - size, hashes[1]])
            if weights is not None:
                hashes = jnp.where((weights > 0)[None], hashes, _LAST)
            return _bottom(hashes, x, self.size)

        for _ in range(x.ndim - 2):
            measure = jax.vmap(measure)
        return self.merge(value, measure(x, weights))

    def merge(self, a: Sample, b: Sample) -> Sample:
        def one(a: Sample, b: Sample) -> Sample:
            hashes = jnp.concatenate([a.hashes, b.hashes], axis=-1)
            return _bottom(hashes, jnp.concatenate([a.rows, b.rows], axis=0), self.size)

        for _ in range(a.rows.ndim - 2):
            one = jax.vmap(one)
        return one(a, b)

    def result(self, value: Sample) -> Sample:
        return value

    def points(self, value: Sample) -> Points:
        """The rows, each of weight 1: tokens, so that any map may be applied to them."""
        return Points.of(value.rows, value.filled[..., None].astype(jnp.float32))
