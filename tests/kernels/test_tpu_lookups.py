"""Codes looked up in a table by the TPU kernels: every code, both ways of looking, tables as data, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.codebooks.kmeans import kmeans
from qjax.formats import elements
from qjax.formats.format import FULL, Format
from qjax.formats.table import Table
from qjax.kernels.tpu import codings, group_scaled, lookups, tiles
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators import narrow_codes
from qjax.operators.narrow_codes import run
from qjax.operators.packed import pack
from qjax.operators.preparation import prepare, unpack
from qjax.quantization import quantize
from tests import draw

NF4 = elements.NF4.values()[:, None]
WAYS = {"bytes": codings.TABLE4, "words": codings.taken(codings.TABLE4, "sums", "v5e")}
TOP = np.float32(3e38)


def rounded(values):
    """To bfloat16 and back, by jax's own cast on the host."""
    return np.asarray(jnp.asarray(values, jnp.float32).astype(jnp.bfloat16), np.float64)


def stored(codes, group):
    span = codings.TABLE4.span(codes.shape[0], group)
    return codings.pack(jnp.asarray(codes), span, 2).reshape(-1, codes.shape[1])


def test_halves_add_up_to_every_bfloat16_within_14_binades():
    """Every significand and sign, at every distance from the largest; two halves of four and three bits."""
    for binade in range(14):
        significands = np.concatenate([np.arange(128, 256), -np.arange(128, 256)]).reshape(-1, 8)
        for row in significands * 2.0 ** -(7 + binade):
            table = np.concatenate([row, [1.5], np.zeros(7)]).astype(np.float32)[:, None]
            high, low, unit = (np.asarray(part, np.float64) for part in SPLIT(table * np.float32(2.0**-20)))
            assert ((high + low) * unit == table * 2.0**-20).all()


SPLIT = jax.jit(lookups.split)


def test_small_entries_are_met_to_a_part_of_the_largest():
    table = np.array([1.99, *(0.7 ** np.arange(30, 45))], np.float32)[:, None]
    high, low, unit = (np.asarray(part, np.float64) for part in SPLIT(table))
    assert (np.abs((high + low) * unit - rounded(table)) <= 2.0**-20 * 1.99).all()


@pytest.mark.parametrize("scaled", ["sums", "codes"])
@pytest.mark.parametrize("way", WAYS)
def test_every_code_is_exact_at_every_place(way, scaled):
    """Every weight as the kernel multiplies it: its product with the identity, a scale of its own for each column."""
    codes = (np.arange(128)[:, None] * 5 + np.arange(256)[None]).astype(np.uint8) % 16
    scale = np.ldexp(1.0, np.arange(512).reshape(2, 256) % 200 - 100)
    arguments = jnp.eye(128, dtype=jnp.bfloat16), stored(codes, 64), jnp.asarray(scale, jnp.float32)
    coding = WAYS[way]
    y = np.asarray(group_scaled.matmul(*arguments, coding, Blocks(128, 256, 128), scaled, True, jnp.asarray(NF4)))
    assert (y == rounded(NF4)[codes, 0] * np.repeat(scale, 64, 0)).all()


@pytest.mark.parametrize("own", [False, True], ids=["one table", "a table a column"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("M", "K", "N", "group", "tiling"),
    [
        (1, 128, 384, 32, Blocks(16, 384, 128)),  # two groups share a span; a strip and a half
        (3, 64, 384, 32, Blocks(16, 128, 64, 3)),  # copied by hand
    ],
)
def test_small_integers_in_a_table_sum_exactly(way, M, K, N, group, tiling, own):
    x, codes, steps = (
        np.array(draw.integers(seed, low, high, *shape))
        for seed, (low, high, *shape) in enumerate(((-4, 5, M, K), (0, 16, K, N), (-3, 3, K // group, N)))
    )
    table = np.array([-128, -97, -51, -33, -17, -9, -3, -1, 0, 2, 5, 11, 23, 45, 77, 127], np.float32)[:, None]
    if own:  # another order in every column, and another magnitude
        orders = np.stack([np.random.default_rng(n).permutation(16) for n in range(N)], axis=1)
        table = table[orders, 0] * np.float32(2.0) ** (np.arange(N) % 7)
    values = np.take_along_axis(np.broadcast_to(table, (16, N)).astype(np.float64), codes, axis=0)
    expected = x @ (values * np.repeat(2.0**steps, group, 0))
    arguments = jnp.asarray(x, jnp.bfloat16), stored(codes, group), jnp.asarray(2.0**steps, jnp.float32)
    y = group_scaled.matmul(*arguments, WAYS[way], tiling, "sums", True, jnp.asarray(table))
    assert (np.asarray(y) == expected).all()
    reference = group_scaled.reference(*arguments, WAYS[way], jnp.asarray(table))
    assert (np.asarray(reference) == expected).all()


@pytest.mark.parametrize("way", WAYS)
def test_hostile_scales_and_tables(way):
    """What is not finite stays in its column; tables at the ends of float32, and all zeros, are met."""
    codes, scale = np.full((64, 128), 3, np.uint8), np.ones((1, 128), np.float32)
    codes[0, 5], scale[0, :3] = 4, (np.inf, np.nan, 0)
    x = jnp.ones((1, 64), jnp.bfloat16)
    table = np.zeros((16, 1), np.float32)
    for value in (2.0**100, 2.0**-100, 0.0):
        table[3], table[4] = value, np.nan
        y = group_scaled.matmul(x, stored(codes, 64), jnp.asarray(scale), WAYS[way], None, "sums", True, table)
        y = np.asarray(y)[0]
        assert not np.isfinite(y[[1, 5]]).any() and y[2] == 0 and (y[6:] == 64 * value).all()
        assert np.isinf(y[0]) or value == 0


@pytest.mark.parametrize(
    ("fmt", "shape"),
    [
        ("nf4_g64", (2, 64, 128)),  # scales that are quantized themselves
        ("bnb_fp4_g32", (64, 128)),  # fifteen values
        (Format(Table("own", tuple(range(-8, 8))), FULL, across=FULL, scale=None, levels=kmeans()), (64, 128)),
        (Format(Table("clusters3", tuple(range(8))), FULL, scale=None, levels=kmeans()), (2, 64, 256)),
    ],
    ids=str,
)
def test_prepared_leaves_are_exact_and_the_kernel_reads_them(fmt, shape):
    q = quantize(jnp.asarray(draw.normal(0, *shape, scale=0.02)), fmt, batch_axes=len(shape) - 2)
    p = prepare({"w": q}, target="tpu")["w"]
    assert p.layout == "tpu.table4.1" and p.shape == q.shape and p.codes.nbytes == q.codes.nbytes // 2
    back = unpack({"w": p})["w"]
    assert back.codes.dtype == q.codes.dtype and bool((back.codes == q.codes).all())
    if len(shape) > 2:
        q, p = dispatch.index(q, 1), dispatch.index(p, 1)
    x = jnp.asarray(draw.normal(1, 2, 3, shape[-2])).astype(jnp.bfloat16)
    W = np.asarray(dispatch.dense(q), np.float64)
    wide = np.asarray(x, np.float64)
    error = np.abs(np.asarray(run(x, p, jnp.float32, interpret=True)) - wide @ W)
    assert (error <= (2.0**-9 + 1e-5) * (np.abs(wide) @ np.abs(W))).all()  # each value rounded to bfloat16, no more


def test_what_no_kernel_reads_is_told(monkeypatch):
    w = jnp.asarray(draw.normal(0, 64, 128))
    for fmt, match in (
        ("nf5_g64", "nf5 is no table of at most 16"),
        ("int4_g64", "int4 is no table"),
        (Format(Table("own", (-1.0, 0.0, 1.0)), 32, scale=None, levels=kmeans()), "tables for 2 groups"),
        (Format(elements.NF4, 32, across=4), "do not lie along the inputs"),
    ):
        with pytest.raises(ValueError, match=match):
            pack(quantize(w, fmt), "tpu.table4.1")
    p = pack(quantize(w, "nf4_g64"), "tpu.table4.1")
    monkeypatch.setattr(narrow_codes, "refuse_platform", lambda platform: None)
    assert "bfloat16 activations" in narrow_codes.refuse_kernel(p, 1, "tpu", jnp.float32)
    assert narrow_codes.refuse_kernel(p, 1, "tpu", jnp.bfloat16) is None
    monkeypatch.setattr(tiles, "chip", lambda: "v4")
    assert "gathers nothing" in narrow_codes.refuse_kernel(p, 1, "tpu", jnp.bfloat16)


def test_a_table_goes_with_its_coding_alone():
    x, codes, scale = jnp.ones((1, 64), jnp.bfloat16), jnp.zeros((32, 128), jnp.uint8), jnp.ones((1, 128))
    with pytest.raises(ValueError, match=r"t4a16 takes a table \[16, 1 or 128\]"):
        group_scaled.matmul(x, codes, scale, codings.TABLE4)
    with pytest.raises(ValueError, match=r"\[16, 1 or 128\]"):
        group_scaled.matmul(x, codes, scale, codings.TABLE4, table=jnp.zeros(16))
    with pytest.raises(ValueError, match="w4a16 takes no table"):
        group_scaled.matmul(x, codes, scale, codings.INT4, table=jnp.zeros(16))


def test_gradients_are_those_of_the_reference():
    codes, scale = jnp.full((32, 128), 0x0F, jnp.uint8), jnp.full((1, 128), 0.5)

    def f(x, s):
        return group_scaled.matmul(x, codes, s, codings.TABLE4, None, "sums", True, jnp.asarray(NF4)).sum()

    dx, ds = jax.grad(f, (0, 1))(jnp.ones((1, 64)), scale)
    np.testing.assert_array_equal(dx[0], np.repeat([64.0, -64.0], 32))
    np.testing.assert_array_equal(ds, np.zeros((1, 128)))
