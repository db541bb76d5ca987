"""Attention over cached codes, interpreted, against numpy: shapes, holes, windows, hostile slots, races."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kernels.tpu import decode_attention
from qjax.kernels.tpu.decode_attention import Held, Tiling, attend
from tests import draw


@functools.partial(jax.jit, static_argnums=6)
def kernel(q, keys, values, slots, positions, window, tiling):
    return attend(q, keys, values, slots, positions, window, tiling, interpret=True)


reference = jax.jit(decode_attention.reference)


def held(seed, dtype, *shape):
    """Codes over the whole range of the type, under scales of several magnitudes for values of about one."""
    if jnp.issubdtype(dtype, jnp.integer):
        top = jnp.iinfo(dtype).max
        codes = jnp.asarray(draw.integers(seed, -top - 1, top + 1, *shape), dtype)
    else:
        top = 2.0
        codes = draw.normal(seed, *shape).astype(dtype)
    scale = 2.0 ** np.array(draw.normal(seed + 1, *shape[:-1])) / top
    return Held(codes, jnp.asarray(scale, jnp.bfloat16))


def by_numpy(q, keys, values, slots, positions, window=0):
    """A loop over sequences, tokens and heads in float64, which reads nothing but what is seen."""
    q, slots, positions = np.asarray(q, np.float64), np.asarray(slots), np.asarray(positions)
    y, group = np.zeros(q.shape), q.shape[2] // keys.codes.shape[1]
    k, v = (
        np.asarray(side.codes, np.float64) * np.asarray(side.scale, np.float64)[..., None] for side in (keys, values)
    )
    for b, t, h in np.ndindex(q.shape[:3]):
        age = positions[b, t] - slots[b]
        (seen,) = np.nonzero((slots[b] >= 0) & (age >= 0) & ((window == 0) | (age < window)))
        if len(seen):
            s = k[b, h // group, seen] @ q[b, t, h]
            p = np.exp(s - s.max())
            y[b, t, h] = p @ v[b, h // group, seen] / p.sum()
    return y


def filled(capacity, *lengths):
    return jnp.asarray([[i if i < n else -1 for i in range(capacity)] for n in lengths], jnp.int32)


def queries(batch, tokens, heads, dim):
    """Of a length that leaves softmax neither flat nor a single peak, and exact in bfloat16."""
    return draw.normal(7, batch, tokens, heads, dim, scale=2 / dim**0.5).astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize(
    ("kinds", "sizes", "lengths", "tokens", "window", "tiling"),
    [
        ((jnp.int8, jnp.int8), (4, 2, 300, 64), (300, 129), 2, 0, Tiling(2, 128)),  # a ragged last block
        ((jnp.float8_e4m3fn, jnp.float8_e4m3fn), (2, 1, 300, 64), (290,), 1, 50, Tiling(1, 128)),  # one before a window
        ((jnp.int4, jnp.bfloat16), (8, 1, 40, 128), (33,), 1, 0, None),  # less than a block
    ],
)
def test_equal_to_numpy(kinds, sizes, lengths, tokens, window, tiling):
    query_heads, heads, capacity, dim = sizes
    batch = len(lengths)
    q = queries(batch, tokens, query_heads, dim)
    keys, values = (held(i, kind, batch, heads, capacity, dim) for i, kind in enumerate(kinds))
    slots = filled(capacity, *lengths)
    positions = jnp.asarray([range(n - tokens, n) for n in lengths], jnp.int32)
    expected = by_numpy(q, keys, values, slots, positions, window)
    y = kernel(q, keys, values, slots, positions, window, tiling)
    assert y.shape == q.shape and y.dtype == jnp.float32
    # Weights are rounded to eight bits of significand, in sums whose terms are of both signs.
    np.testing.assert_allclose(y, expected, atol=0.02 * np.abs(expected).max())
    exact = reference(q, keys, values, slots, positions, window)
    np.testing.assert_allclose(exact, expected, atol=1e-4)


def test_holes_padding_and_nothing_to_see():
    """Positions out of order, empty slots between, a query that is padding, a sequence with nothing in its cache."""
    q = queries(2, 2, 4, 64)
    keys, values = (held(i, jnp.int8, 2, 2, 300, 64) for i in (0, 1))
    slots = np.where(np.arange(300) % 3 == 0, 299 - np.arange(300), -1)
    slots = jnp.asarray([slots, np.full(300, -1)], jnp.int32)
    positions = jnp.asarray([[-1, 200], [3, 4]], jnp.int32)
    expected = by_numpy(q, keys, values, slots, positions)
    y = np.asarray(kernel(q, keys, values, slots, positions, 0, Tiling(2, 128)))
    assert (y[0, 0] == 0).all() and (y[1] == 0).all()
    np.testing.assert_allclose(y, expected, atol=0.02 * np.abs(expected).max())
    exact = reference(q, keys, values, slots, positions)
    np.testing.assert_allclose(exact, expected, atol=1e-4)


def test_unseen_slots_do_not_leak():
    """NaN and infinities in codes and scales of every slot that is empty, later than the query or behind its window."""
    q = queries(1, 1, 2, 64)
    keys, values = (held(i, jnp.float8_e4m3fn, 1, 1, 300, 64) for i in (0, 1))
    slots, positions = filled(300, 250), jnp.asarray([[200]], jnp.int32)
    bad = jnp.asarray((np.arange(300) > 200) | (np.arange(300) <= 50))

    def spoiled(side, scale):
        codes = jnp.where(bad[None, None, :, None], jnp.asarray(jnp.nan, jnp.float8_e4m3fn), side.codes)
        return Held(codes, jnp.where(bad[None, None], jnp.asarray(scale, jnp.bfloat16), side.scale))

    expected = by_numpy(q, keys, values, slots, positions, 150)
    for scale in (jnp.nan, jnp.inf):
        dirty = spoiled(keys, scale), spoiled(values, scale)
        y = kernel(q, *dirty, slots, positions, 150, Tiling(1, 128))
        np.testing.assert_allclose(y, expected, atol=0.02 * np.abs(expected).max())
        exact = reference(q, *dirty, slots, positions, 150)
        np.testing.assert_allclose(exact, expected, atol=1e-4)


def test_without_slots_everything_is_seen_and_large_scores_stay_finite():
    q = 1e4 * queries(1, 1, 2, 64)
    keys, values = (held(i, jnp.int8, 1, 1, 256, 64) for i in (0, 1))
    y = kernel(q, keys, values, None, None, 0, Tiling(1, 128))
    q = q.astype(jnp.bfloat16).astype(jnp.float32)
    expected = by_numpy(q, keys, values, filled(256, 256), [[255]])
    np.testing.assert_allclose(y, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_and_nothing_uninitialised():
    from jax.experimental.pallas import tpu as pltpu

    q = queries(1, 1, 2, 64)
    keys, values = (held(i, jnp.int8, 1, 1, 256, 64) for i in (0, 1))
    slots, positions = filled(256, 200), jnp.asarray([[199]], jnp.int32)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    y = attend(q, keys, values, slots, positions, 0, Tiling(1, 128), look)
    expected = by_numpy(q, keys, values, slots, positions)
    np.testing.assert_allclose(y, expected, atol=0.02 * np.abs(expected).max())


def test_what_does_not_fit_is_refused():
    q = queries(1, 1, 4, 64)
    keys = held(0, jnp.int8, 1, 2, 128, 64)
    slots, positions = filled(128, 3), jnp.zeros((1, 1), jnp.int32)
    assert attend(q[:, :0], keys, keys, slots, positions[:, :0]).shape == (1, 0, 4, 64)
    refuse = decode_attention.refuse
    assert refuse(2, 4, 128, 64, jnp.float8_e4m3fn, "v4") == "TPU v4 multiplies no floats of eight bits"
    assert refuse(2, 4, 128, 64, jnp.int8, "v4") is None
    narrow, wide = keys._replace(codes=keys.codes.astype(jnp.int2)), keys._replace(codes=keys.codes.astype(jnp.int16))
    empty = Held(keys.codes[:, :, :0], keys.scale[:, :, :0])
    for arguments, match in (
        (
            (q, narrow, keys, slots, positions),
            r"keys \(1, 2, 128, 64\) cannot be attended to: codes are int2: it reads",
        ),
        ((q, keys, wide, slots, positions), "values .* codes are int16"),
        ((q[:, :, :3], keys, keys, slots, positions), "3 query heads cannot share 2 key heads"),
        ((q, empty, empty, slots[:, :0], positions), "the cache has no slots"),
        ((q, keys, empty, slots, positions), "values .* do not fit"),
        ((q, keys, keys, slots, None), "belong together"),
        ((q, keys, keys, slots[:, :5], positions), "slots and positions .*1, 5.* must be"),
        ((q[..., :32], *(Held(keys.codes[..., :32], keys.scale),) * 2, slots, positions), "no multiple of 64"),
        ((q, keys, keys, slots, positions, 0, Tiling(2, 96)), "do not divide"),
        ((q, keys, keys, None, None, 0, Tiling(2, 256)), "do not divide"),
    ):
        with pytest.raises(ValueError, match=match):
            attend(*arguments)
