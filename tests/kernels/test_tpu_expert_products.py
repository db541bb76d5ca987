"""Products of rows sorted by expert, interpreted, against numpy: sizes of runs, codes, blocks, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kernels.tpu import codings, expert_products
from qjax.kernels.tpu.codings import E2M1, INT4, INT8, TABLE4
from qjax.kernels.tpu.tiles import Blocks
from tests import draw
from tests.kernels.test_tpu_group_scaled import problem


def experts(coding, M, E, K, N, group):
    """`problem` for E experts: codes that differ, the same x; expected [E, M, N]."""
    x, codes, scale, expected = problem(coding, M, K, N, group)
    rolled = [np.roll(np.asarray(a), e, axis=-1) for e in range(E) for a in (codes, scale)]
    codes, scale = (jnp.stack([jnp.asarray(a) for a in rolled[i::2]]) for i in (0, 1))
    return x, codes, scale, np.stack([np.roll(expected, e, axis=-1) for e in range(E)])


def by_run(expected, sizes, M):
    y, start = np.zeros(expected.shape[1:]), 0
    for e, size in enumerate(sizes):
        y[start : start + size] = expected[e, start : start + size]
        start += size
    return y


@pytest.mark.parametrize("scaled", ["sums", "codes"])
@pytest.mark.parametrize(
    ("coding", "sizes", "M", "K", "N", "group", "tiling"),
    [
        (INT4, (3, 0, 1, 4), 8, 1024, 256, 64, Blocks(16, 128, 512)),  # an expert without rows, several blocks each way
        (INT4, (40, 0, 0, 0), 40, 576, 128, 64, Blocks(16, 128, 576)),  # one takes all, in three blocks
        (INT4, (0, 0, 5, 2), 10, 576, 128, 64, None),  # the last three rows have no expert
        (INT8, (0, 0), 3, 256, 128, 32, None),  # no row has
        (INT8, (17, 16), 33, 512, 256, 32, Blocks(16, 256, 256)),  # spread over the groups of a span
    ],
)
def test_exact_where_sums_are(scaled, coding, sizes, M, K, N, group, tiling):
    x, codes, scale, expected = experts(coding, M, len(sizes), K, N, group)
    counts = jnp.asarray(sizes, jnp.int32)
    y = expert_products.matmul(x, codes, scale, counts, coding, tiling, scaled, True)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == by_run(expected, sizes, M)).all()
    assert (np.asarray(expert_products.reference(x, codes, scale, counts, coding)) == by_run(expected, sizes, M)).all()


placed = jax.jit(expert_products.placement, static_argnums=(1, 2))


def test_every_routing_of_few_rows_is_placed_once():
    for M, rows in ((1, 2), (5, 2), (7, 4)):
        for sizes in np.ndindex(M + 1, M + 1, M + 1):
            if sum(sizes) > M:
                continue
            at = placed(jnp.asarray(sizes), M, rows)
            source, place = np.asarray(at.source), np.asarray(at.place)
            owner = np.repeat(np.arange(3), sizes)
            assert (source[place[: len(owner)]] == np.arange(len(owner))).all()
            assert (np.sort(source[source < M]) == np.arange(len(owner))).all()
            assert (np.asarray(at.expert)[place[: len(owner)] // rows] == owner).all()
            assert int(at.used[0]) == sum(-(-s // rows) for s in sizes)
            assert (source.reshape(-1, rows)[int(at.used[0]) :] == M).all()


def test_scales_of_a_byte_and_infinities_of_others():
    """NVFP4's scales as they are stored; an expert that holds an infinity touches its own rows alone."""
    codes = jnp.asarray(draw.integers(0, 0, 16, 2, 256, 128), jnp.int8)
    packed = jax.vmap(lambda c: codings.pack(c, E2M1.span(256, 16), E2M1.packed).reshape(-1, 128))(codes)
    scale = jnp.asarray(np.abs(draw.normal(1, 2, 16, 128)) + 0.1).astype(jnp.float8_e4m3fn)
    x = jnp.asarray(draw.integers(2, -4, 5, 4, 256)).astype(jnp.bfloat16)
    values = np.asarray(E2M1.decode(codes)) * np.repeat(np.asarray(scale, np.float32), 16, axis=1)
    y = expert_products.matmul(x, packed, scale, jnp.array([1, 3]), E2M1, None, "sums", True)
    np.testing.assert_allclose(y, by_run(np.asarray(x, np.float64) @ values, (1, 3), 4), rtol=1e-6, atol=1e-5)
    broken = scale.astype(jnp.float32).at[0, 0].set(jnp.inf)
    y = expert_products.matmul(x, packed, broken, jnp.array([1, 3]), E2M1, None, "sums", True)
    assert not np.isfinite(y[0]).all() and np.isfinite(y[1:]).all()


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_and_what_is_uninitialised_reaches_no_row():
    from jax.experimental.pallas import tpu as pltpu

    x, codes, scale, expected = experts(INT4, 20, 3, 1024, 256, 64)
    look = pltpu.InterpretParams(detect_races=True)  # empty blocks of y stay NaN
    y = expert_products.matmul(x, codes, scale, jnp.array([17, 0, 2]), INT4, Blocks(16, 128, 512), "sums", look)
    assert (np.asarray(y) == by_run(expected, (17, 0, 2), 20)).all()


def test_gradients_are_those_of_the_reference():
    x, codes, scale, _ = experts(INT4, 6, 2, 256, 128, 64)
    x, sizes = x.astype(jnp.float32), jnp.array([2, 3])

    def slopes(f):
        return jax.grad(lambda x, s: (f(x, s) ** 2).sum(), (0, 1))(x, scale)

    ours = slopes(lambda x, s: expert_products.matmul(x, codes, s, sizes, INT4, None, "sums", True))
    theirs = slopes(lambda x, s: expert_products.reference(x, codes, s, sizes, INT4))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert (np.asarray(ours[0])[5] == 0).all()


def test_shapes_that_do_not_fit_raise():
    x, codes, scale, _ = experts(INT4, 4, 2, 256, 128, 64)
    sizes = jnp.array([2, 2])
    assert expert_products.matmul(x[:0], codes, scale, sizes, INT4).shape == (0, 128)
    for arguments, match in (
        ((x, codes[:1], scale, sizes, INT4), "do not fit"),
        ((x, codes, scale, sizes[:1], INT4), r"sizes \(1,\)"),
        ((x, codes[..., :100], scale[..., :100], sizes, INT4), "no multiple of 128"),
        ((x, codes, scale, sizes, TABLE4), "is looked up"),
        ((x, codes, scale, sizes, INT4, Blocks(16, 128, 256, 3)), "do not divide"),
    ):
        with pytest.raises(ValueError, match=match):
            expert_products.matmul(*arguments)
