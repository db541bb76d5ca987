"""Attention over two quantized caches in one call: by XLA, and by the kernel interpreted, on the arrays they hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kv import QuantizedCache, decode_attention
from qjax.kv.cached_attention import _by_kernel, refuse_kernel, refuse_state
from tests import draw


def filled(fmt, seed):
    """The cache and its state after five tokens of one sequence and three of another that was padded on the left."""
    cache = QuantizedCache(fmt)
    positions = jnp.asarray([[0, 1, 2, 3, 4], [-2, -1, 0, 1, 2]], jnp.int32)
    return cache, cache.append(cache.init(2, 8, 2, 64), draw.normal(seed, 2, 5, 2, 64), positions)


def test_both_ways_are_softmax_between_scores_and_mix():
    (key_cache, keys), (value_cache, values) = filled("int4", 0), filled("fp8_e4m3", 1)
    q, positions = draw.normal(2, 2, 1, 4, 64, scale=0.2), jnp.asarray([[4], [2]], jnp.int32)
    p = jax.nn.softmax(key_cache.scores(keys, q, positions), axis=-1)
    expected = np.asarray(value_cache.mix(values, p))
    np.testing.assert_allclose(decode_attention(q, keys, values, positions), expected, atol=1e-5)
    found = _by_kernel(q, keys, values, positions, 0, interpret=True)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    latest = decode_attention(q, keys, values, positions, window=1)
    held = np.asarray(value_cache.decode(values)[0])
    np.testing.assert_allclose(latest[0, 0, 2:], np.stack([held[0, 4, 1]] * 2), atol=1e-5)


def test_a_query_that_sees_nothing_gives_zeros():
    _, state = filled("int8", 0)
    y = decode_attention(draw.normal(2, 2, 1, 4, 64), state, state, jnp.asarray([[4], [-1]], jnp.int32))
    assert (y[1] == 0).all() and (y[0] != 0).all()


@pytest.mark.parametrize(
    ("fmt", "exact_prefix", "match"),
    [
        ("int3", 0, None),  # a byte a channel as well
        ("int4_g32_affine", 0, "keys are uint4: the kernel reads signed integers of at most 8 bits, and E4M3"),
        ("int8_g32", 0, "keys have blocks of 32 of 64 channels"),
        ("mxfp4", 0, "keys are "),
        ("int8", 2, "keys keep the first 2 positions in float32"),
    ],
)
def test_what_the_kernel_cannot_read_is_said(fmt, exact_prefix, match):
    state = jax.eval_shape(lambda: QuantizedCache(fmt, exact_prefix).init(2, 8, 2, 64))
    why = refuse_state("keys", state)
    assert why is None if match is None else match in str(why)
    assert refuse_kernel(state, state, 4, "tpu") == why or jax.__version_info__ < (0, 12)


def test_a_named_kernel_that_cannot_run_raises():
    state = QuantizedCache("int8").init(2, 8, 2, 64)
    q, positions = jnp.ones((2, 1, 4, 64)), jnp.zeros((2, 1), jnp.int32)
    with pytest.raises(ValueError, match="'mosaic' cannot run: it is compiled for tpu, not cpu"):
        decode_attention(q, state, state, positions, implementation="mosaic")
