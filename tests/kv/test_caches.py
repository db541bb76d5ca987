from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kv import Cache, FloatCache, QuantizedCache
from qjax.kv.attention import MASKED, grouped_mix, grouped_scores, visible

CACHES = {
    "float32": FloatCache(),
    "bfloat16": FloatCache("bfloat16"),
    "int8": QuantizedCache("int8"),
    "int2_g2_affine, sink": QuantizedCache("int2_g2_affine", exact_prefix=1),
    "nvfp4": QuantizedCache("nvfp4"),
}
EVERY = pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES.keys())


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@EVERY
def test_is_a_cache(cache):
    assert isinstance(cache, Cache)
    assert hash(cache) == hash(dataclasses.replace(cache))


def test_bits():
    # int8 and a bfloat16 scale a head; 2 + (16 + 2) / 2; 4 + 8 / 16 and a float32 a head.
    assert [cache.bits(64) for cache in CACHES.values()] == [32.0, 16.0, 8.25, 11.0, 5.0]


@EVERY
def test_appending_in_pieces_is_appending_at_once(cache):
    x, positions = np.asarray(random(0, 2, 5, 3, 4)), np.array([[0, 1, 2, 3, 4], [-1, -1, 0, 1, 2]], np.int32)
    append, empty = jax.jit(cache.append), cache.init(2, 8, 3, 4)
    whole = append(empty, x, positions)
    for cut in (1, 3):
        state = empty
        for start in range(0, 5, cut):
            state = append(state, x[:, start : start + cut], positions[:, start : start + cut])
        jax.tree.map(np.testing.assert_array_equal, state, whole)


def test_decode_is_the_identity_where_filled():
    cache, x = FloatCache(), random(0, 2, 3, 2, 4)
    values, slots = cache.decode(cache.append(cache.init(2, 5, 2, 4), x, jnp.array([[0, 1, 2], [-1, 0, 1]])))
    np.testing.assert_array_equal(slots, [[0, 1, 2, -1, -1], [0, 1, -1, -1, -1]])
    np.testing.assert_array_equal(values[0, :3], x[0])
    np.testing.assert_array_equal(values[1, :2], x[1, 1:])


def test_positions_outside_the_capacity_leave_the_state_alone():
    cache = FloatCache()
    state = cache.append(cache.init(1, 2, 1, 4), random(0, 1, 2, 1, 4), jnp.array([[0, 1]]))
    after = cache.append(state, random(1, 1, 2, 1, 4), jnp.array([[-1, 2]]))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_scores_and_mix_against_a_loop_over_heads():
    cache, q, k = FloatCache(), random(0, 2, 3, 6, 4), random(1, 2, 3, 2, 4)
    positions = jnp.array([[0, 1, 2], [-1, 0, 1]])
    state = cache.append(cache.init(2, 4, 2, 4), k, positions)
    scores = np.asarray(cache.scores(state, q, positions))
    values, slots = (np.asarray(a) for a in cache.decode(state))
    p = random(2, 2, 6, 3, 4)
    mixed = np.asarray(cache.mix(state, p))
    for b in range(2):
        for h in range(6):
            expected = np.asarray(q)[b, :, h] @ values[b, :, h // 3].T
            seen = (slots[b][None] >= 0) & (slots[b][None] <= np.asarray(positions)[b][:, None])
            np.testing.assert_allclose(scores[b, h], np.where(seen, expected, MASKED), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(mixed[b, :, h], np.asarray(p)[b, h] @ values[b, :, h // 3], rtol=1e-5, atol=1e-6)


def test_nothing_repeats_a_key_head():
    """The largest array of the program is the scores, not a key tensor repeated for every query head."""
    q, k = jnp.zeros((1, 2, 8, 64)), jnp.zeros((1, 1, 32, 64))
    jaxpr = jax.make_jaxpr(grouped_scores)(q, k)
    assert max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars) < 8 * 32 * 64


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
        grouped_scores(jnp.zeros((1, 1, 3, 4)), jnp.zeros((1, 2, 1, 4)))


def test_visible_hides_padding_and_the_future():
    positions = jnp.array([[-1, 0, 1]])
    assert visible(positions, positions)[0, 0].tolist() == [[False] * 3, [False, True, False], [False, True, True]]


def test_mix_of_a_uniform_row_is_the_mean():
    v = random(0, 1, 2, 5, 3)
    y = grouped_mix(jnp.full((1, 4, 1, 5), 0.2), v)
    np.testing.assert_allclose(y[0, 0, :2], jnp.broadcast_to(v[0, 0].mean(0), (2, 3)), rtol=1e-5, atol=1e-6)
