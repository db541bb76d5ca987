"""Quantized arrays under jax: slicing, stacking, vmap, scan, loops, gradients, and their sizes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qjax import blocks, qarray
from qjax.formats import parse
from qjax.quantization import (
    bits_per_weight,
    check,
    decode_with,
    dequantize,
    encode,
    encode_with,
    fake_quantize,
    fit,
    nbytes,
    outer_steps,
    quantize,
    stack_groups,
    steps,
)
from tests import draw

NAMES = ["int8", "int4_g32", "int3_g32_affine", "fp8_e4m3_tensor", "mxfp4", "nvfp4", "nf4_g32"]
TREES = [name for name in NAMES if name != "int4_g32"]  # mxfp4 has the same children


@functools.cache
def weights(*shape: int) -> jax.Array:
    return draw.normal(0, *shape)


def is_qarray(x) -> bool:
    return isinstance(x, qarray.QArray)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", TREES)
def test_batch_axes_are_a_tree_map(name):
    w = weights(3, 64, 6)
    q = quantize(w, name, batch_axes=1)
    check(q)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(q))
    one = quantize(w[1], name)
    assert_same(jax.tree.map(lambda a: np.asarray(a)[1], q), one)
    assert_same(qarray.index(q, 1), one)
    assert_same(jax.jit(qarray.index)(q, jnp.int32(1)), one)
    assert_same(jax.vmap(lambda x: quantize(x, name))(w), q)
    assert_same(jax.tree.map(lambda *a: np.stack(a), *[quantize(x, name) for x in w]), q)
    scanned = jax.lax.scan(lambda c, layer: (c, dequantize(layer)), 0, q)[1]
    for values in (scanned, jax.vmap(dequantize)(q)):
        np.testing.assert_array_equal(values, dequantize(q))


@pytest.mark.parametrize("name", TREES)
def test_transposing_and_taking_keep_the_values(name):
    w = weights(64, 6)
    q, x = quantize(w, name), np.asarray(dequantize(quantize(w, name)))

    @jax.jit
    def turned_and_taken(q, outputs, inputs):
        turned, parts = qarray.transpose(q), (qarray.take(q, outputs, -1), qarray.take(q, inputs, -2))
        return turned, qarray.transpose(turned), parts, jax.tree.map(dequantize, (turned, *parts), is_leaf=is_qarray)

    outputs, inputs = np.array([5, 0, 0]), np.array([63, 2, 40, 2])
    turned, back, parts, values = turned_and_taken(q, jnp.asarray(outputs), jnp.asarray(inputs))
    assert_same(back, q)
    for part, got, want in zip((turned, *parts), values, (x.T, x[:, outputs], x[inputs]), strict=True):
        check(part)
        np.testing.assert_array_equal(got, want)


def test_shared_children_are_indexed_by_their_only_entry():
    q = quantize(weights(3, 64, 6), "int4_g32", batch_axes=1)
    shared = qarray.QArray(q.codes, (jnp.ones((1, 2, 6), jnp.bfloat16),), None, None, q.meta)
    check(shared)
    np.testing.assert_array_equal(dequantize(qarray.index(shared, 2)), q.codes[2])


@pytest.mark.parametrize("name", ["int4_g32", "int3_g32_affine", "nvfp4", "mxfp4", "nf4_g32"])
def test_a_grid_fitted_group_by_group_in_a_loop_is_the_whole_grid(name):
    """What GPTQ does: refit one group [g, N] at a time under the outer level of the whole matrix."""
    w, fmt = weights(64, 6), parse(name)
    g = fmt.block

    @jax.jit
    def by_groups(w):
        whole = fit(w, fmt)
        outer = jax.tree.map(lambda a: a.reshape(-1, 1, a.shape[-1]), outer_steps(whole))

        def group(carry, xs):
            x, level = xs
            part = fit(x, fmt, outer=level)
            scale, offset = steps(part)
            # Row by row, as the solver does.
            codes = jax.lax.fori_loop(
                0,
                g,
                lambda i, c: c.at[i].set(encode_with(part.meta, x[i], scale[0], None if offset is None else offset[0])),
                jnp.zeros(x.shape, fmt.element.code_dtype),
            )
            return carry, (part, codes)

        _, (parts, codes) = jax.lax.scan(group, 0, (w.reshape(-1, g, w.shape[-1]), outer))
        grid = stack_groups(parts, whole)
        return qarray.QArray(codes.reshape(w.shape), grid.scales, grid.offset, grid.table, grid.meta)

    assert_same(by_groups(w), quantize(w, name))


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_make_the_whole(name):
    w = weights(64, 6)
    q, grid = quantize(w, name), fit(w, name)
    assert_same(grid, q.grid)
    assert_same(encode(grid, w), q)

    @jax.jit
    def elementwise(q, w):
        scale, offset = (None if s is None else blocks.enlarge(s, (64, 6), q.meta.block) for s in steps(q))
        return encode_with(q.meta, w, scale, offset), decode_with(q.meta, q.codes, scale, offset)

    codes, values = elementwise(q, w)
    np.testing.assert_array_equal(codes, q.codes)
    np.testing.assert_array_equal(values, dequantize(q))


@pytest.mark.parametrize("name", NAMES)
def test_the_straight_through_gradient_is_the_identity(name):
    w = weights(64, 6)
    y, pull = jax.vjp(lambda w: fake_quantize(w, name), w)
    np.testing.assert_array_equal(y, dequantize(quantize(w, name)))
    np.testing.assert_array_equal(pull(w)[0], w)
    slope = jax.grad(lambda w: fake_quantize(w, name).astype(jnp.float32).sum())
    assert jax.eval_shape(slope, w.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_no_recompilation():
    traces = []

    @jax.jit
    def f(w):
        traces.append(1)
        return quantize(w, "nvfp4")

    q = f(weights(64, 6))
    f(weights(64, 6) + 1)
    dequantize(q)
    size = dequantize._cache_size()
    dequantize(f(weights(64, 6) * 2))
    assert len(traces) == 1 and dequantize._cache_size() == size


def test_bits_are_counted_true():
    w = weights(128, 16)

    def shapes(name):
        return jax.eval_shape(lambda w: quantize(w, name), w)

    assert bits_per_weight(shapes("int4_g64")) == 4 + 16 / 64
    assert bits_per_weight(shapes("int3_g64_affine")) == 3 + (16 + 3) / 64
    assert bits_per_weight(shapes("mxfp4")) == 4.25
    assert bits_per_weight(shapes("nvfp4")) == 4.5 + 32 / w.size
    assert bits_per_weight(shapes("nf4_g64")) == 4 + 8 / 64 + 64 / w.size
    assert nbytes({"a": w, "b": [quantize(w, "int8_tensor")]}) == w.size * 5 + 2
    assert nbytes(shapes("int4_g64")) == w.size // 2 + 2 * w.size // 64
    assert nbytes(jax.random.key(0)) == 8


def test_more_core_axes_and_several_block_axes():
    w = weights(8, 2, 4)
    q = quantize(w, "int8", axis=(0, 1))
    assert q.scales[0].shape == (1, 1, 4)
    flat = quantize(w.reshape(16, 4), "int8")
    np.testing.assert_array_equal(dequantize(q).reshape(16, 4), dequantize(flat))
    assert quantize(w, "int8", axis=0).scales[0].shape == (1, 2, 4)
    assert quantize(w, "nvfp4", axis=-1).shape == (8, 2, 4)


@given(st.integers(0, 2**31 - 1), st.sampled_from(["int4_g32", "int3_g32_affine", "mxfp4", "nvfp4", "fp8_e4m3_tensor"]))
def test_multiplying_by_a_power_of_two_changes_only_scales(seed, name):
    w = draw.normal(seed, 64, 6)
    a, b = quantize(w, name), quantize(w * 8, name)
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(dequantize(a) * 8, dequantize(b))


@given(st.integers(0, 2**31 - 1), st.sampled_from(["mxfp4", "nf4_g16_f32", "fp4_e2m1_g32_f32"]))
def test_quantizing_twice_changes_nothing(seed, name):
    once = dequantize(quantize(draw.normal(seed, 64, 6), name))
    np.testing.assert_array_equal(dequantize(quantize(once, name)), once)


@given(st.integers(0, 2**31 - 1), st.sampled_from(["int4_g32", "int3_g32_affine", "mxfp4", "nvfp4", "nf4_g32"]))
def test_order_is_kept_within_a_block(seed, name):
    blocks = 64 // parse(name).block, parse(name).block, 6
    w = np.sort(np.asarray(draw.normal(seed, 64, 6)).reshape(blocks), axis=1).reshape(64, 6)
    values = np.asarray(dequantize(quantize(jnp.asarray(w), name)))
    assert (np.diff(values.reshape(blocks), axis=1) >= 0).all()
