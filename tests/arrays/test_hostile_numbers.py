"""Hostile numbers in every named format: each gives what the documentation says, in every input type.

One stack of matrices, run eagerly and in blocks of 16 where the format's own are longer: formats share the programs of
single operations, so that one costs little. 40 rows are no whole number of blocks.
The block types of ggml have a table of their own in tests/formats/test_ggml.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.formats import NAMED, parse
from qjax.quantization import check, dequantize, quantize
from tests.reference import quantize_numpy

PLAIN = ("int8", "int4_g64", "int4_g64_affine", "int8_tensor", "nf4_g64", "fp8_e4m3", "fp8_e4m3_cast")
PLAIN += ("int4_g64_signed", "nf4_g64_f32")
NAMES = (*PLAIN, *{fmt: name for name, fmt in reversed(NAMED.items())}.values())  # each once
every = pytest.mark.parametrize("name", NAMES)
ROWS, COLUMNS = 40, 3
CASES = ("ramp", "zeros", "minus zeros", "zeros and ramp", "below normal", "least", "small", "huge", "infinite", "nan")
# What does not hold float32's range: small weights become zeros and large ones saturate (docs/formats.md).
SHORT = ("fp8_e4m3_cast", "nvfp4_e4m3", "nvfp4_ue5m3", "bitmod3", "bitmod4")
LEAST = np.finfo(np.float32).tiny


@functools.cache
def stack() -> np.ndarray:
    """[cases, 40, 3], float32 values that bfloat16 holds."""
    ramp = np.stack([np.linspace(-1, 1, ROWS), np.linspace(1, -0.5, ROWS), np.linspace(0.1, 1, ROWS)], axis=1)
    ramp = ramp.astype(jnp.bfloat16).astype(np.float64)
    infinite, nan = ramp.copy(), ramp.copy()
    infinite[3, 0], infinite[4, 1], nan[3, 0] = np.inf, -np.inf, np.nan
    tiny = np.full_like(ramp, 1e-38)
    partly = np.where(np.arange(ROWS)[:, None] < 32, 0.0, ramp)
    sizes = [ramp * 2.0**-119, ramp * 2.0**-100, ramp * 3e38]
    cases = [ramp, 0 * ramp, -0.0 * np.abs(ramp), partly, tiny, *sizes, infinite, nan]
    return np.stack(cases).astype(jnp.bfloat16).astype(np.float32)


@functools.cache
def quantized(name: str, dtype: str = "float32"):
    """The quantized stack and its values; float16 holds the cases whose numbers it has, and others saturate."""
    fmt = parse(name)
    fmt = fmt.blocked(16) if fmt.block > 16 else fmt
    with jax.disable_jit():
        q = quantize(jnp.asarray(stack()).astype(dtype), fmt, batch_axes=1)
        return q, np.asarray(dequantize(q).astype(jnp.float32))


def values(name: str, case: str) -> np.ndarray:
    return quantized(name)[1][CASES.index(case)]


@every
def test_zeros_of_either_sign_are_zeros(name):
    # The smallest levels where the element has no zero.
    least = 0 if 0 in parse(name).element.levels() else 2 * LEAST
    for case in ("zeros", "minus zeros"):
        assert (np.abs(values(name, case)) <= least).all()
    assert (np.abs(values(name, "zeros and ramp")[:32]) <= least).all()


@every
def test_nothing_small_is_lost(name):
    assert (np.abs(values(name, "below normal")) <= 2 * LEAST).all()
    if name not in SHORT:
        expected = values(name, "ramp") * np.float32(2.0**-100)
        normal = np.abs(expected) >= LEAST
        np.testing.assert_array_equal(values(name, "small")[normal], expected[normal])
        assert np.abs(values(name, "least") - stack()[CASES.index("least")]).max() < 0.4 * 2.0**-119


@every
def test_the_ends_of_float32_stay_finite_and_keep_their_sign(name):
    w, ours = stack()[CASES.index("huge")], values(name, "huge")
    assert np.isfinite(ours).all()
    assert (ours * np.sign(w) >= 0).all() or name in PLAIN  # of an affine range that saturates, the zero moves
    if name not in SHORT:
        assert (np.abs(ours).max(0) > 0.5 * np.abs(w).max(0)).all()


@every
def test_an_infinity_saturates_and_a_nan_shows(name):
    fmt, infinite, nan = parse(name), values(name, "infinite"), values(name, "nan")
    assert np.isfinite(infinite).all()
    assert infinite[3, 0] == infinite[:, 0].max() and infinite[4, 1] == infinite[:, 1].min()
    assert np.isnan(nan[3, 0])
    alone = fmt.local and isinstance(fmt.scale, str | None) and not (fmt.tensor and fmt.scale)
    if alone:  # no level above the blocks: other columns know nothing of it
        np.testing.assert_array_equal(nan[:, 1:], values(name, "ramp")[:, 1:])
        np.testing.assert_array_equal(infinite[:, 2], values(name, "ramp")[:, 2])
    with pytest.raises(ValueError, match="layers/0/q"):
        check(jax.tree.map(lambda a: a[CASES.index("nan")], quantized(name)[0]), "layers/0/q")
    check(jax.tree.map(lambda a: a[:-1], quantized(name)[0]))


@every
def test_input_types_are_quantized_as_float32_and_saturate_in_their_own_range(name):
    q, wide = quantized(name)
    same, half = quantized(name, "bfloat16")
    assert same.dtype == jnp.bfloat16
    for ours, expected in zip(jax.tree.leaves(same), jax.tree.leaves(q), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(expected).tobytes()  # NaN among them
    top = float(jnp.finfo(jnp.bfloat16).max)
    np.testing.assert_array_equal(half, np.clip(wide, -top, top).astype(jnp.bfloat16).astype(np.float32))
    _, half = quantized(name, "float16")
    assert np.isfinite(half[:-1]).all() and np.isnan(half[-1, 3, 0])
    at = [CASES.index(case) for case in ("zeros", "minus zeros")]
    np.testing.assert_array_equal(half[at], wide[at])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
def test_an_empty_axis_is_refused(shape):
    for name in NAMES:
        with pytest.raises(ValueError, match="no elements"):
            quantize(jnp.zeros(shape), name)


@pytest.mark.parametrize("name", [*PLAIN[:-1], "mxfp4", "nvfp4", "bitmod4", "ant4"])
def test_an_axis_of_one(name):
    """Of a block and of a matrix: one number and its padding."""
    fmt, x = parse(name), stack()[0, 3:4, :1]
    full = np.pad(x, ((0, max(fmt.block, 1) - 1), (0, 0)), "edge" if fmt.offset else "constant")
    q = quantize(jnp.asarray(x), name)
    check(q)
    assert float(dequantize(q)[0, 0]) in [float(o[0, 0]) for o in reference(full, fmt)]


def reference(w: np.ndarray, fmt) -> list[np.ndarray]:
    return quantize_numpy.options(w, fmt) if len(fmt.candidates) > 1 else [quantize_numpy.quantize(w, fmt)]
