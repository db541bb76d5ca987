"""Every map: its matrix, its transpose and its inverse agree with what it does."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.formats import FULL, Format, Int
from qjax.operators import (
    AffineMap,
    Augment,
    Block,
    BlockKronecker,
    Composed,
    Diag,
    Frame,
    Gather,
    Hadamard,
    Identity,
    Kronecker,
    NotAffine,
    NotInvertible,
    Orthogonal,
    Permute,
    Quantize,
    Reassemble,
    Shift,
    counter,
)
from qjax.operators.maps.hadamard import hadamard_factors, hadamard_matrix
from qjax.quantization import dequantize, quantize
from tests.draw import normal

K = 12
# 3 and 7 are merged, so are 4, 5 and 6; 0 goes in two copies and 9 in three; 7 is empty and 11 is lost.
REASSEMBLED = ((0, 1, 2, 3, 4, 4, 4, 3, 8, 9, 10, 11), (0, 0, 1, 2, 3, 4, 7, 8, 9, 9, 9, 10))


def near_identity(seed: int, *shape: int) -> jax.Array:
    return normal(seed, *shape) * 0.1 + jnp.broadcast_to(jnp.eye(shape[-1]), shape)


def order(*batch: int) -> jax.Array:
    count = int(np.prod(batch, dtype=int))
    return jnp.asarray([np.random.default_rng(i).permutation(K) for i in range(count)], jnp.int32).reshape(*batch, K)


MAPS = {
    "diag": lambda *b: Diag(jnp.exp(normal(0, *b, K))),
    "permute": lambda *b: Permute(order(*b)),
    "shift": lambda *b: Shift(normal(1, *b, K)),
    "identity": lambda *b: Identity(),
    "hadamard": lambda *b: Hadamard(jnp.sign(normal(2, *b, K)).astype(jnp.int8), 12),
    "hadamard blocks": lambda *b: Hadamard(None, 4),
    "hadamard backwards": lambda *b: Hadamard(jnp.sign(normal(2, *b, K)).astype(jnp.int8), 12, backwards=True),
    "kronecker": lambda *b: Kronecker((near_identity(3, *b, 3, 3), near_identity(4, *b, 4, 4))),
    "orthogonal": lambda *b: Orthogonal(jnp.linalg.qr(normal(5, *b, 4, 4))[0]),
    "block": lambda *b: Block(near_identity(6, *b, 3, 4, 4)),
    "block kronecker": lambda *b: BlockKronecker(near_identity(3, *b, 2, 2), near_identity(4, *b, 3, 2, 2)),
    "affine": lambda *b: AffineMap(near_identity(7, *b, K, K), normal(8, *b, K)),
    "composed": lambda *b: Composed((Shift(normal(1, *b, K)), MAPS["diag"](*b), Shift(normal(2, *b, K)))),
    "frame": lambda *b: Frame(normal(9, *b, 4, 6)),
    "augment": lambda *b: Augment(jnp.broadcast_to(jnp.array([0, 0, 5]), (*b, 3))),
    "reassemble": lambda *b: Reassemble(*(jnp.broadcast_to(jnp.asarray(g), (*b, 12)) for g in REASSEMBLED)),
    "gather": lambda *b: Gather(jnp.broadcast_to(jnp.array([0, 0, 5]), (*b, 3))),
}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("name", MAPS)
def test_matrix_transpose_and_inverse(name, batch):
    T = MAPS[name](*batch)
    x, w = normal(9, *batch, 3, K), normal(10, *batch, K, 5)
    invertible = name not in ("augment", "gather", "frame", "reassemble")

    @jax.jit
    def run(T, x, w):
        y = T.apply(x)
        back = (T.inverse().apply(y), counter(T, w)) if invertible else None
        return y, T.matrix_shift(K), T.transpose().transpose().apply(x), back

    y, (M, c), linear, back = run(T, x, w)
    x, w, y, M = map(np.asarray, (x, w, y, M))
    assert T.results(K) == y.shape[-1] and T.features(y.shape[-1]) == K
    np.testing.assert_allclose(y, x @ M + (0 if c is None else np.asarray(c)[..., None, :]), atol=1e-5)
    np.testing.assert_allclose(linear, x @ M, atol=1e-5)
    if back is None:
        with pytest.raises(NotInvertible):
            T.inverse()
    else:
        np.testing.assert_allclose(back[0], x, atol=1e-4)
        if c is None:
            np.testing.assert_allclose(y @ np.asarray(back[1]), x @ w, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 12, 20, 28, 36, 64, 96, 576, 1536])
def test_hadamard_matrices_are_orthogonal_with_equal_magnitudes(size):
    h = hadamard_matrix(size)
    np.testing.assert_allclose(h @ h.T, np.eye(size), atol=1e-5)
    np.testing.assert_allclose(np.abs(h), size**-0.5, rtol=1e-6)
    x = np.asarray(normal(0, 2, size))
    dense = np.array([[1.0]])
    for f in hadamard_factors(size):
        dense = np.kron(dense, f)
    np.testing.assert_allclose(Hadamard(None, size).apply(jnp.asarray(x)), x @ dense, atol=1e-5)


def test_hadamard_refuses_sizes_without_a_matrix():
    with pytest.raises(ValueError, match="size 6"):
        Hadamard(None, 6).apply(jnp.ones((1, 6)))
    with pytest.raises(ValueError, match="does not divide"):
        Hadamard(None, 8).apply(jnp.ones((1, 12)))


def test_signs_from_a_key_cost_nothing_and_learned_ones_a_bit_each():
    assert Hadamard.random(jax.random.key(0), 16).bits() == 0
    assert Hadamard(jnp.ones(16, jnp.int8), 16, learned=True).bits() == 16
    assert Orthogonal(jnp.eye(4)).bits() == 16 * 32


def test_dynamic_quantization_is_per_token_or_per_tensor():
    x = normal(0, 2, 3, 16)
    for fmt in ("int8", "int8_tensor", "mxfp8_e4m3"):
        expected = dequantize(quantize(x.reshape(6, 16), fmt, axis=-1)).reshape(x.shape)
        assert bool((Quantize.dynamic(fmt).apply(x) == expected).all())
        by_name = Quantize(cast(Any, fmt))  # by hand, with the name of a format
        assert by_name.format == Quantize.dynamic(fmt).format and bool((by_name.apply(x) == expected).all())
    one_token = Quantize.dynamic("int8").apply(x[:1, :1])
    assert bool((one_token == Quantize.dynamic("int8").apply(x)[:1, :1]).all())


def test_static_quantization_saturates_and_passes_gradients():
    T = Quantize.static("int8_tensor", -1.0, 1.0)
    x = jnp.array([[0.5, -3.0, 0.0]])
    y = T.apply(x)
    assert abs(float(y[0, 0]) - 0.5) < 0.01 and abs(float(y[0, 1]) + 1.0) < 0.02 and float(y[0, 2]) == 0.0
    assert bool((jax.jit(T.apply)(x) == y).all())
    assert jax.grad(lambda x: T.apply(x).sum())(x).tolist() == [[1.0, 1.0, 1.0]]
    affine = Quantize.static("int8_tensor_affine", 0.0, 2.0)
    np.testing.assert_allclose(affine.apply(jnp.array([[1.0, 5.0]])), [[1.0, 2.0]], atol=0.01)
    for fmt in ("int8", "int8_g4", "mxfp8_e4m3"):
        with pytest.raises(ValueError, match="span the tokens"):
            Quantize.static(fmt, -1.0, 1.0)
    with pytest.raises(NotAffine):
        T.transpose()


def test_static_scales_of_channels_and_groups():
    x, reach = np.asarray(normal(0, 5, 3, 16) * 3), np.exp(normal(1, 16))
    for block, groups in ((1, reach), (8, np.repeat(reach.reshape(2, 8).max(1), 8)), (5, None)):
        fmt = Format(Int(8, narrow=True), block, FULL, "float32")
        T = Quantize.static(fmt, -reach, reach)
        if groups is None:  # a block that does not divide the channels
            groups = np.concatenate([np.full(5, reach[i : i + 5].max()) for i in range(0, 20, 5)])[:16]
        step = groups / np.float32(127)
        np.testing.assert_allclose(jax.jit(T.apply)(x), np.clip(np.rint(x / step), -127, 127) * step, rtol=1e-6)
    with pytest.raises(ValueError, match="points of every channel"):
        Quantize.static(fmt, -1.0, 1.0)
    batched = jax.tree.map(lambda part: jnp.stack([part, 2 * part]), T)
    x = jnp.asarray(x)
    both = batched.apply(jnp.stack([x, x]))
    np.testing.assert_array_equal(both[0], T.apply(x))
    np.testing.assert_array_equal(both[1], 2 * T.apply(x / 2))


def test_dynamic_ranges_by_an_estimator():
    x = normal(0, 3, 64)
    T = Quantize.dynamic("int4_f32", qjax.ranges.percentile(90.0))
    want = dequantize(quantize(x, "int4_f32", axis=-1, range=qjax.ranges.percentile(90.0)))
    np.testing.assert_array_equal(T.apply(x), want)
    assert hash(jax.tree.structure(T)) == hash(jax.tree.structure(Quantize.dynamic("int4_f32", T.range)))


def test_maps_keep_half_precision():
    top = jnp.full((1, 2), 65504.0, jnp.float16)
    assert bool(jnp.isfinite(Quantize.static("int8_tensor", -65504.0, 65504.0).apply(top)).all())
    x = normal(0, 2, K).astype(jnp.bfloat16)
    for name in ("diag", "hadamard", "kronecker", "orthogonal", "block", "affine", "shift", "permute"):
        assert MAPS[name]().apply(x).dtype == jnp.bfloat16
    assert Quantize.dynamic("int8").apply(x).dtype == jnp.bfloat16
