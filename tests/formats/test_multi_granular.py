"""Product codes of embeddings against loops, and Lloyd's law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.codebooks import (
    product_bits,
    product_codes,
    product_distance,
    product_lookup,
    product_quantize,
    product_values,
)

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(40, 6)), jnp.float32)
ALLOWED = jnp.asarray([8] * 10 + [3] * 30, jnp.int32)
BOOKS = jnp.asarray(RNG.normal(size=(2, 8, 3)), jnp.float32)


def test_codes_are_the_nearest_allowed():
    want = [
        [
            int(np.argmin([np.sum((row[3 * s : 3 * s + 3] - np.asarray(BOOKS[s, k])) ** 2) for k in range(int(n))]))
            for s in range(2)
        ]
        for row, n in zip(np.asarray(TABLE), ALLOWED, strict=True)
    ]
    codes = product_codes(TABLE, BOOKS, ALLOWED)
    assert codes.tolist() == want and int(codes[10:].max()) < 3 < int(codes[:10].max())
    rows = np.stack([np.concatenate([BOOKS[s, k] for s, k in enumerate(row)]) for row in want])
    np.testing.assert_array_equal(product_values(codes, BOOKS), rows)


def test_gradients_go_straight_to_rows_and_by_distance_to_both():
    g = jnp.asarray(RNG.normal(size=(40, 6)), jnp.float32)
    y, back = jax.vjp(lambda x, b: product_lookup(x, b, ALLOWED), TABLE, BOOKS)
    to_x, to_books = back(g)
    assert (to_x == g).all() and not np.asarray(to_books).any()
    to_x, to_books = jax.grad(product_distance, (0, 1))(TABLE, BOOKS, ALLOWED)
    np.testing.assert_allclose(to_x, 2 * (TABLE - y), rtol=1e-6)
    codes = np.asarray(product_codes(TABLE, BOOKS, ALLOWED))
    want = np.zeros((2, 8, 3))
    for row, rounded, code in zip(np.asarray(TABLE), np.asarray(y), codes, strict=True):
        for s in range(2):
            want[s, code[s]] += 2 * (rounded - row)[3 * s : 3 * s + 3]
    np.testing.assert_allclose(to_books, want, atol=1e-5)


def test_lloyd_never_rises_and_ends_in_means():
    losses = []
    for n in (0, 1, 2, 5, 30):
        found = product_quantize(TABLE, ALLOWED, jax.random.key(0), subspaces=2, centroids=8, iterations=n)
        losses.append(float(jnp.sum((TABLE - product_values(*found)) ** 2)))
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    for s in range(2):
        for k in range(8):
            mine = np.asarray(TABLE)[np.asarray(found.codes)[:, s] == k, 3 * s : 3 * s + 3]
            if len(mine):
                np.testing.assert_allclose(found.codebooks[s, k], mine.mean(0), atol=1e-5)
    assert product_bits((10, 30), (8, 3), subspaces=2, width=6) == 10 * 2 * 3 + 30 * 2 * 2 + 8 * 6 * 32
    with pytest.raises(ValueError, match="give a divisor"):
        product_quantize(TABLE, ALLOWED, jax.random.key(0), subspaces=4, centroids=8)
