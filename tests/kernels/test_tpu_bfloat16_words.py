"""Codes made bfloat16 by words, as TPU v4 takes them: interpreted against numpy, prepared for it, and compiled."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kernels.aot import tpu
from qjax.kernels.tpu import bfloat16_words, codings, expert_products, group_scaled, tiles
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators import narrow_codes
from qjax.operators.preparation import prepare, unpack
from qjax.quantization import dequantize, quantize
from tests import draw
from tests.kernels.aot_records import benchmark


@pytest.fixture
def on_v4(monkeypatch):
    monkeypatch.setattr(tiles, "chip", lambda: "v4")


def problem(coding, K, N, group):
    """Every code, small integers and power-of-two scales: all exact."""
    top = 2 ** (coding.bits - 1)
    codes = np.resize(np.arange(-top, top), (N, K)).T
    x, steps = np.array(draw.integers(0, -4, 5, 5, K)), np.array(draw.integers(1, -3, 3, K // group, N))
    stored = jnp.asarray(codes + coding.above, jnp.int8)
    stored = stored if coding.packed == 1 else coding.stored(stored, coding.span(K, group)).reshape(-1, N)
    expected = x @ (codes * np.repeat(2.0**steps, group, 0))
    return jnp.asarray(x, jnp.bfloat16), stored, jnp.asarray(2.0**steps, jnp.float32), expected


@pytest.mark.parametrize("scaled", ["sums", "codes"])
@pytest.mark.parametrize(
    ("coding", "K", "group", "tiling"),
    [
        (codings.INT2, 512, 64, None),
        (codings.INT4, 1024, 128, Blocks(16, 128, 1024)),
        (codings.INT4, 192, 16, None),  # shorter than a tile of rows
        (codings.INT8, 768, 32, Blocks(16, 128, 256)),
        (codings.INT8, 96, 96, None),  # no multiple of 128 channels
    ],
)
def test_integers_are_exact_and_so_is_the_order_of_rows(on_v4, scaled, coding, K, group, tiling):
    x, stored, scale, expected = problem(coding, K, 128, group)
    y = group_scaled.matmul(x, stored, scale, coding, tiling, scaled, True)
    np.testing.assert_array_equal(y, expected)


def test_experts_have_the_order_as_well(on_v4):
    x, stored, scale, expected = problem(codings.INT4, 256, 128, 64)
    sizes = jnp.asarray([2, 3], jnp.int32)
    both = jnp.stack([stored, stored]), jnp.stack([scale, 2 * scale])
    y = expert_products.matmul(x, *both, sizes, codings.INT4, interpret=True)
    np.testing.assert_array_equal(y, expected * np.array([1, 1, 2, 2, 2])[:, None])


def test_the_order_is_that_of_strides_in_a_tile():
    x = jnp.arange(96, dtype=jnp.float32)[None]
    assert bfloat16_words.in_order(x, 1) is x
    tile = np.concatenate([np.arange(i, 32, 4) for i in range(4)])
    np.testing.assert_array_equal(bfloat16_words.in_order(x, 4)[0], np.concatenate([tile, 32 + tile, 64 + tile]))


@pytest.mark.parametrize("fmt", ["mxfp4", "nvfp4"])
def test_leaves_prepared_for_v4_are_exact_and_the_kernel_reads_them(fmt, on_v4, monkeypatch):
    q = quantize(jnp.asarray(draw.normal(0, 128, 128, scale=0.02)), fmt)
    p = prepare({"w": q}, target="tpu-v4")["w"]
    assert p.layout == "tpu.e2m1_pairs.1" and p.layout == prepare({"w": q}, target="tpu")["w"].layout
    assert bool((unpack(p).codes == q.codes).all()) and p.bits() > 8 * q.codes.size
    x = jnp.asarray(draw.normal(1, 3, 128)).astype(jnp.bfloat16)
    W = np.asarray(dequantize(q), np.float64)
    error = np.abs(narrow_codes.run(x, p, jnp.float32, interpret=True) - np.asarray(x, np.float64) @ W)
    assert (error <= 1e-6 * (np.abs(np.asarray(x, np.float64)) @ np.abs(W))).all()
    monkeypatch.setattr(narrow_codes, "refuse_platform", lambda platform: None)
    assert narrow_codes.refuse_kernel(p, 1, "tpu", jnp.bfloat16) is None


def test_a_target_is_a_kind_or_a_chip_with_layouts_of_its_own():
    q = quantize(jnp.ones((128, 128)), "int4_g64")
    assert prepare({"w": q}, target="tpu-v4")["w"].layout == "tpu.int4.2"
    with pytest.raises(ValueError, match=r"no layout for target 'tpu-v9'.*'tpu-v4'"):
        prepare({"w": q}, target="tpu-v9")


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
def test_four_bits_take_fewer_cycles_than_the_bytes_of_bfloat16():
    """If no bundle waits: libtpu has no model of this chip."""
    records = benchmark("--tokens 16 --chips v4 --kernels", "mxfp4pairs codes", "nvfp4pairs codes", "w4a16 sums")
    assert [r["problem"] for r in records] == [None] * 3
    assert all(r["speed_of_bf16_floor"] > 1.1 for r in records)
