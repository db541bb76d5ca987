"""Quantized arrays without a scale and with tables of their own, through everything an array goes through."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch, qarray, serialization
from qjax.formats import BF16, E4M3, E5M2, FP16, FULL, UE5M3, Format, Int, Table
from qjax.operators.grouped import NIBBLES
from qjax.operators.layout import as_matrix
from qjax.operators.maps.quantize import Quantize
from qjax.operators.packed import pack
from qjax.quantization import bits_per_weight, check, dequantize, fit, quantize, stack_groups, steps
from qjax.solvers import gptq
from tests import draw

FOUR = Table("four", (-1.0, -0.25, 0.25, 1.0))


def ends(x, axes, fmt, weights=None):
    """A block's least and largest value, and a quarter of each."""
    low, high = jnp.min(x, axis=axes, keepdims=True), jnp.max(x, axis=axes, keepdims=True)
    return jnp.stack([low, low / 4, high / 4, high], axis=-1)


FORMATS = {
    "cast": Format(E4M3, scale=None),
    "wide cast": Format(Int(12), scale=None),
    "per group": Format(FOUR, 16, scale=None, levels=ends),
    "scaled group": Format(FOUR, 16, levels=ends),
    "tile": Format(FOUR, 16, 4, levels=ends),
    "per channel": Format(FOUR, scale=None, levels=ends),
    "per tensor": Format(FOUR, FULL, FULL, scale=None, levels=ends),
    "scales cast": Format(Int(4), 16, scale=Format(UE5M3, scale=None)),
}
COUNTS = {"per group": (4, 6), "scaled group": (4, 6), "tile": (4, 2), "per channel": (1, 6), "per tensor": (1, 1)}


def weights(*shape: int, seed: int = 0) -> jax.Array:
    return draw.normal(seed, *shape, scale=3.0)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", ["wide cast", "per group", "tile", "scales cast"])
def test_batch_axes_pieces_and_disk(name, tmp_path):
    w, fmt = weights(2, 64, 6), FORMATS[name]
    q, x = quantize(w, fmt, batch_axes=1), dequantize(quantize(w, fmt, batch_axes=1))
    check(q)
    assert q.table is None if name not in COUNTS else q.table.shape == (2, *COUNTS[name], 4)
    one = quantize(w[1], fmt)
    same(qarray.index(q, 1), one)
    same(jax.vmap(lambda w: quantize(w, fmt))(w), q)
    np.testing.assert_array_equal(jax.lax.scan(lambda c, q: (c, dequantize(q)), 0, q)[1], x)
    outputs, inputs, x = np.array([5, 0, 0]), np.array([63, 2, 40, 2]), np.asarray(x)
    parts = jax.jit(
        lambda q, outputs, inputs: (qarray.transpose(q), qarray.take(q, outputs, -1), qarray.take(q, inputs, -2))
    )(one, jnp.asarray(outputs), jnp.asarray(inputs))
    for part, want in zip(parts, (x[1].T, x[1][:, outputs], x[1][inputs]), strict=True):
        check(part)
        np.testing.assert_array_equal(dequantize(part), want)
    np.testing.assert_array_equal(dispatch.matmul(jnp.eye(64), one), x[1])
    serialization.save(tmp_path / "q", {"q": q})
    same(serialization.load(tmp_path / "q")["q"], q)


def test_what_is_counted():
    w = weights(64, 6)
    bits = {
        "cast": 8,
        "wide cast": 12,
        "per channel": 2 + 4 * 32 / 64,
        "per tensor": 2 + 4 * 32 / w.size,
        "scaled group": 2 + (16 + 4 * 32) / 16,
        "scales cast": 4 + 8 / 16,
    }
    for name, expected in bits.items():
        fmt = FORMATS[name]
        assert bits_per_weight(jax.eval_shape(lambda w, fmt=fmt: quantize(w, fmt), w)) == expected, name


@pytest.mark.parametrize("e", [BF16, FP16, E4M3, E5M2], ids=lambda e: e.name)
def test_a_cast_of_arrays_is_the_cast_of_numbers(e):
    w = weights(8, 4).at[0, 0].set(jnp.inf).at[1, 1].set(jnp.nan).at[2, 2].set(-1e-30)
    q = quantize(w, Format(e, scale=None))
    assert q.scales == () and steps(q) == (None, None) and q.meta.block == (FULL, FULL)
    codes, values = jax.jit(lambda w: (e.encode(w), e.round(w)))(w)
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(dequantize(q), values)
    with pytest.raises(ValueError, match="no finite"):
        check(q, "layers/0/q")
    vector = quantize(w[3], Format(e, scale=None), axis=-1)
    np.testing.assert_array_equal(dequantize(vector), values[3])


def test_a_table_serves_each_channel_and_may_be_shared_by_groups():
    """A table per column and one for all columns, given by hand over grouped scales."""
    w, g = weights(64, 6), 16
    q = quantize(w, Format(FOUR, g, scale="float32"))
    scale = np.repeat(np.asarray(steps(q)[0]), g, axis=0)

    @jax.jit
    def values_and_parts(q):
        parts = qarray.take(q, jnp.array([3, 40]), -2), qarray.take(q, jnp.array([5, 1]), -1)
        return dequantize(q), *map(dequantize, parts)

    for shape in ((1, 6), (4, 1), (1, 1)):
        table = jnp.asarray(np.sort(weights(*shape, 4, seed=1), axis=-1))
        learned = dataclasses.replace(q, table=table)
        check(learned)
        each = np.broadcast_to(np.repeat(np.asarray(table), 4 // shape[0], 0), (4, 6, 4))
        expected = np.take_along_axis(np.repeat(each, g, 0), np.asarray(q.codes)[..., None], -1)[..., 0] * scale
        got = values_and_parts(learned)
        for values, want in zip(got, (expected, expected[[3, 40]], expected[:, [5, 1]]), strict=True):
            np.testing.assert_array_equal(values, want)
    with pytest.raises(ValueError, match=r"does not fit the blocks \(4, 6\)"):
        check(dataclasses.replace(q, table=jnp.broadcast_to(table, (2, 6, 4))))


@pytest.mark.parametrize(("name", "groups"), [("per group", "stale"), ("tile", "fresh"), ("cast", "static")])
def test_gptq_rounds_every_row_in_its_groups_table(name, groups):
    """Without correlation between inputs GPTQ repairs nothing: it is rounding to nearest, whenever scales are fixed.

    Nine columns in tiles of four: the last tile has one.
    """
    w, fmt = weights(64, 9), FORMATS[name]
    q, info = gptq.solve(w, jnp.eye(64), fmt, groups=groups, damp=0.0, block=32)
    check(q)
    assert not bool(info.fallback)
    same(q, quantize(w, fmt))
    if name != "tile":
        x = weights(256, 64, seed=2) @ weights(64, 64, seed=3)
        _, info = gptq.solve(w, x.T @ x, fmt, groups=groups, damp=0.0, block=32)
        assert float(info.after) < 0.9 * float(info.before)


def test_kernels_refuse_what_they_cannot_do():
    q = quantize(weights(64, 6), FORMATS["wide cast"])
    with pytest.raises(ValueError, match="no scale"):
        dispatch.matmul(jnp.ones((1, 64)), q, implementation="groups")
    for name in ("wide cast", "cast", "per group"):
        with pytest.raises(ValueError, match="does not fit"):
            pack(quantize(weights(64, 6), FORMATS[name]), NIBBLES)


def test_matrix_form_of_more_axes():
    w = weights(4, 16, 3, 2)
    for fmt in (Format(E4M3, scale=None), Format(FOUR, scale=None, levels=ends)):
        q = quantize(w, fmt, axis=(0, 1))
        m = as_matrix(q, (0, 1), (2, 3))
        check(m)
        np.testing.assert_array_equal(dequantize(m), dequantize(q).reshape(64, 6))
    q = quantize(w, Format(FOUR, scale=None, levels=ends), axis=(0, 1))
    shared = dataclasses.replace(q, table=q.table[:, :, :1])  # one table for three of six columns
    assert as_matrix(shared, (0, 1), (2, 3)) is None


def test_static_activations_are_cast():
    x = weights(5, 8)
    np.testing.assert_array_equal(Quantize.static(Format(E4M3, scale=None), -1.0, 1.0).apply(x), E4M3.round(x))
    np.testing.assert_array_equal(Quantize.dynamic(Format(E4M3, scale=None)).apply(x), E4M3.round(x))


def test_a_grid_of_tables_fitted_in_pieces():
    w, fmt = weights(64, 6), FORMATS["scaled group"]
    whole = fit(w, fmt)
    parts = jax.lax.map(lambda x: fit(x, fmt), w.reshape(4, 16, 6))
    same(stack_groups(parts, whole), whole)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"block": 32}, "no blocks"),
        ({"rule": "minmax", "offset": "minimum"}, "nothing to choose"),
        ({"element": Int(4), "levels": ends}, "Table"),
    ],
)
def test_impossible_casts_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        Format(**{"element": E4M3, "scale": None, **fields})
    with pytest.raises(ValueError, match="8 bits"):
        Format(Int(9, signed=False), 32, rule="minmax", offset="minimum")
