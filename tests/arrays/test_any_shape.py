"""Any shape, axis, batch, input type and block, drawn: each array is the numpy reference's matrices put together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qjax.formats import Format, Int, parse
from qjax.qarray import FULL
from qjax.quantization import dequantize, quantize
from qjax.validity import check
from tests.reference import quantize_numpy

NAMES = (
    "int4_g8",
    "int3_g8_affine_f32",
    "int5_g8_minimum",
    "int8_tensor",
    "mxfp4",
    "nvfp4",
    "nf4_g8_f32",
    "int8_input",
)


@st.composite
def problems(draw):
    batch = draw(st.integers(0, 1))
    core = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 20)) for _ in range(batch + core))
    fmt = parse(draw(st.sampled_from(NAMES)))
    if fmt.block not in (1, FULL):
        fmt = fmt.blocked(draw(st.integers(1, 12)))
    axis = draw(st.integers(-core, -1))
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    return shape, batch, fmt, axis, dtype, draw(st.integers(0, 2**31 - 1))


def by_hand(w: np.ndarray, fmt, axis: int) -> np.ndarray:
    """One core array: its block axis against all others, padded as the format says, by loops."""
    moved = np.moveaxis(w, axis, 0)
    x = moved.reshape(moved.shape[0], -1)
    size = x.shape[0] if fmt.block == FULL else fmt.block
    x = np.pad(x, ((0, -x.shape[0] % size), (0, 0)), "edge" if fmt.offset == "minimum" else "constant")
    return np.moveaxis(quantize_numpy.quantize(x, fmt)[: moved.shape[0]].reshape(moved.shape), 0, axis)


@settings(max_examples=6)
@given(problems())
def test_any_array_is_its_matrices(problem):
    shape, batch, fmt, axis, dtype, seed = problem
    w = jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 2.0 ** (seed % 9), dtype)
    q = quantize(w, fmt, axis=axis, batch_axes=batch)
    check(q)
    assert q.shape == shape and q.dtype == w.dtype
    each = np.asarray(w, np.float32).reshape(-1, *shape[batch:])
    expected = np.stack([by_hand(one, fmt, axis) for one in each]).reshape(shape)
    np.testing.assert_array_equal(dequantize(q), expected.astype(w.dtype))
    if batch:
        one = jax.tree.map(lambda a: a[-1:], q)
        np.testing.assert_array_equal(dequantize(one), dequantize(q)[-1:])


def test_a_block_of_one_number():
    q = quantize(jnp.array([0.5, -7.5]), Format(Int(4), block=1, rule="half"), axis=-1)
    np.testing.assert_allclose(dequantize(q), [0.5 * 7 / 7.5, -8.0], rtol=1e-2)
