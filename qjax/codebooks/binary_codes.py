"""Binary coding of integers: a table c + Σ b_i a_i, b_i in {0, 1}, chosen for every block (GPTQT's second step)."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.formats.format import Format


@dataclass(frozen=True)
class binary_codes:
    """Of all binary codings of the integers of `first` bits, each block's best: the `levels` of a `Format`.

    A block is first rounded to the integers 0..2^first - 1 over ±`shrink` of its range; a coding with k bits then
    stands for c + Σ b_i a_i, positive integers a_1 <= ... <= a_k inside them. The shrinkage and the coding with the
    least sum weight·(x - level)² win: "quantize twice", the scale searched again for what the second step leaves
    (Guo et al. 2024, arXiv:2407.02891; catalogue E21).

    >>> from qjax.formats import Format, Table
    >>> two = Format(Table("two bits", (-1.0, -0.5, 0.5, 1.0)), scale="float32", levels=binary_codes(3))
    >>> x = jnp.array([[-1.0, -0.7, 0.7, 1.0]])
    >>> binary_codes(3)(x, (-1,), two).round(2).tolist()
    [[[-1.0, -0.71, 0.71, 1.0]]]
    """

    first: int
    shrink: tuple[float, ...] = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format, weights: Array | None = None) -> Array:
        codings = all_codings(fmt.element.bits, self.first)
        if len(fmt.element.levels()) != 2**fmt.element.bits or not len(codings):
            raise ValueError(f"{fmt.element.name} has no binary coding with integers of {self.first} bits")
        last = tuple(range(-len(axes), 0))
        kept = [1 if a - x.ndim in axes else n for a, n in enumerate(x.shape)]
        rows = jnp.moveaxis(x, axes, last).reshape(int(np.prod(kept)), -1)
        share = jnp.ones_like(x) if weights is None else jnp.broadcast_to(weights, x.shape)
        share = jnp.moveaxis(share, axes, last).reshape(rows.shape)
        top = 2**self.first - 1
        integers = np.arange(top + 1)
        # Where each coding puts each integer; over a block the error needs only moments of what fell on an integer.
        nearest = np.argmin(np.abs(codings[:, :, None] - integers), axis=1)
        reached = np.take_along_axis(codings, nearest, axis=1).T.astype(np.float32)
        errors, tables = [], []
        for f in self.shrink:
            value, levels = (np.float32(f) * (2 * part / np.float32(top) - 1) for part in (reached, codings))
            code = jnp.clip(jnp.round((rows / jnp.float32(f) + 1) * jnp.float32(top / 2)), 0, top).astype(jnp.int32)
            fell = jnp.where(code[..., None] == jnp.asarray(integers, jnp.int32)[None, None], share[..., None], 0)
            mass, first_moment = jnp.sum(fell, axis=1), jnp.sum(fell * rows[..., None], axis=1)
            errors.append(mass @ jnp.asarray(value**2) - 2 * first_moment @ jnp.asarray(value))
            tables.append(jnp.asarray(levels, jnp.float32))
        best = jnp.argmin(jnp.concatenate(errors, axis=1), axis=1)
        return jnp.concatenate(tables)[best].reshape(*kept, -1)


@functools.cache
def all_codings(bits: int, first: int) -> np.ndarray:
    """The ascending levels [codings, 2^bits] of every binary coding inside 0..2^first - 1.

    >>> all_codings(1, 2).tolist()
    [[0, 1], [1, 2], [2, 3], [0, 2], [1, 3], [0, 3]]
    """
    top = 2**first - 1
    on = np.array(list(itertools.product((0, 1), repeat=bits)))
    found = [
        np.sort(start + on @ np.array(steps))
        for steps in itertools.combinations_with_replacement(range(1, top + 1), bits)
        for start in range(top - sum(steps) + 1)
    ]
    return np.array(found).reshape(-1, 2**bits)
