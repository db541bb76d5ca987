"""Every kind of format on one stack of matrices: bit for bit against numpy, and laws, and hostile numbers.

One compilation a format: the cases are entries of a batch axis.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import blocks
from qjax.formats import Choice, Format, parse
from qjax.quantization import bits_per_weight, check, dequantize, quantize, steps
from tests.reference import quantize_numpy

# Distinct programs; what differs in a constant only (mxfp6 from mxfp4, mae from mse) is in test_spelling and below.
FORMATS = [
    *("int8_tensor", "int8_input", "int8_head4", "int8_t16x4", "fp8_e4m3_t32x8_f32", "int8_cross0.15_narrow_f32"),
    *("int4_g16_floatzero", "int4_g16_minimum", "int4_g16_narrow_scale_uint6_g2_f16", "fp4_e2m1_g16_max4_bf16"),
    *("int4_g32_scale_int8_narrow_f32", "fp4_e2m1_g32_rceil_max7.25_e8m0", "fp8_e4m3_cast", "int8_g32_e5m2"),
    *("nvint4", "nvfp4_e4m3", "nvfp4_ue5m3", "nvfp4_4over6", "nvfp4_4over6_mae", "nvfp4_t16x4"),
    *("mxint4", "mxfp4_fpquant", "bfp6", "bm8", "bl4", "bitmod3_g32", "bitmod4_g32", "ant4_g32", "mofq8_tensor"),
    *("flex8", "int4_g16_narrow|nf4_g16_bf16|max"),
]
CASES = ("ties", "normal", "zeros", "tiny", "huge", "infinite", "nan", "minus zero", "eight times", "sorted")
# Their scales do not have the range of float32, so small weights become zeros and large ones saturate.
SHORT = ("fp8_e4m3_cast", "nvfp4_e4m3", "nvfp4_ue5m3", "int8_g32_e5m2", "int4_g16_narrow_scale_uint6_g2_f16")
SHORT += ("bitmod3_g32", "bitmod4_g32")
TINY = np.finfo(np.float32).tiny
# What a rule may cut off the largest magnitude of a block, as a share of it; at the end of float32 the largest value of
# a grid must stay finite, whose scale may have to be a power of two, or whose two ends together do not fit.
CUT = {"mxint4": 0.13, "bfp6": 0.04, "bm8": 0.07, "fp4_e2m1": 0.18, "bitmod3": 0.34, "bitmod4": 0.26, "int8": 0.07}
HUGE_CUT = 0.51


@functools.cache
def stack() -> np.ndarray:
    """[cases, 64, 8]."""
    rng = np.random.default_rng(0)
    ramp = np.stack([np.linspace(-1, 1, 64), np.linspace(1, -0.5, 64)] * 4, axis=1)
    normal = rng.normal(size=(64, 8)) * np.exp2(rng.integers(-3, 3, 8))
    ties = rng.normal(size=(64, 8))
    ties[:, 0] = rng.integers(-15, 16, 64) / 2
    ties[:, 1] = rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, -8.0], 64)
    ties[:, 2] = 0
    ties[:32, 3] = 0
    ties[5, 4] = 300.0
    infinite, nan = ramp.copy(), ramp.copy()
    infinite[3, 0], nan[3, 0] = np.inf, np.nan
    zeros = np.zeros((64, 8))
    cases = [ties, normal, zeros, ramp * 3e-36, ramp * 3e38, infinite, nan, -zeros, 8 * normal, np.sort(normal, axis=0)]
    return np.stack(cases).astype(np.float32)


@functools.cache
def results(name: str):
    q = quantize(jnp.asarray(stack()), name, batch_axes=1)
    return q, np.asarray(dequantize(q))


def case(name: str, which: str) -> np.ndarray:
    return results(name)[1][CASES.index(which)]


def by_blocks(x: np.ndarray, fmt: Format) -> np.ndarray:
    """[blocks, elements] of one matrix."""
    g, h = quantize_numpy.size(fmt, x.shape)
    return x.reshape(64 // g, g, 8 // h, h).swapaxes(1, 2).reshape(-1, g * h)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("which", ["ties", "normal"])
def test_bit_for_bit(name, which):
    fmt, w, ours = parse(name), stack()[CASES.index(which)], case(name, which)
    if not isinstance(fmt.rule, Choice):
        want = quantize_numpy.quantize(w, fmt)
        if fmt.alpha is not None:  # powers of which no two libraries, nor one on two processors, give the same last bit
            off = np.abs(ours - want) > 1e-6 * np.abs(want)
            assert off.mean() < 0.02, f"{off.sum()} values differ by more than what a power may"
            return
        np.testing.assert_array_equal(ours, want)
        return
    # Each block, or all, is what one candidate makes of it, and none makes it better.
    options = np.stack([by_blocks(o, fmt) for o in quantize_numpy.options(w, fmt)])
    error = np.abs(options.astype(np.float64) - by_blocks(w, fmt))
    error = {"mse": (error**2).sum(-1), "mae": error.sum(-1), "max": error.max(-1)}[fmt.rule.by]
    same = (by_blocks(ours, fmt) == options).all(-1)
    if fmt.rule.per == "tensor":
        error, same = error.sum(1, keepdims=True), same.all(1, keepdims=True)
    best = error.min(0)
    assert (np.where(same, error, np.inf).min(0) <= best * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    for which in ("zeros", "minus zero"):
        np.testing.assert_allclose(case(name, which), 0, atol=3e-38)


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_is_within_half_a_step_at_every_magnitude(name):
    fmt, (q, values) = parse(name), results(name)
    scale, _ = steps(q)
    spread = functools.partial(blocks.enlarge, core_shape=(64, 8), block=q.meta.block)
    scale = np.ones((10, 64, 8)) if scale is None else np.asarray(spread(scale), np.float64)
    index = np.zeros((10, 1, 1)) if q.table is None else np.asarray(spread(q.table[..., 0]))
    for at, which in enumerate(CASES):
        w = stack()[at].astype(np.float64)
        if which not in ("normal", "tiny", "huge"):
            continue
        if name in SHORT and which != "normal":
            assert np.isfinite(values[at]).all()
            continue
        size, error, s = np.abs(w), np.abs(values[at] - w), scale[at]
        top = by_blocks(size, fmt).max(-1)
        assert (np.abs(by_blocks(values[at], fmt)).max(-1) > 0.5 * top - TINY).all(), which
        for i, c in enumerate(fmt.candidates):
            levels = c.element.levels().astype(np.float64)
            # Half a step, a scale and an offset rounded to eight bits, and what the rule cuts off.
            bound = s * np.diff(levels).max() / 2 + 2.0**-7 * size + TINY
            cut = HUGE_CUT if which == "huge" else CUT.get(name.split("_g")[0], 0.04)
            beyond = np.maximum(size - s * min(-levels[0], levels[-1]), 0)
            # An affine range of float32's own width is halved.
            bound += cut * size.max() if fmt.offset else np.minimum(beyond, cut * size.max())
            chosen = np.broadcast_to(index[at % len(index)] == i, w.shape)
            assert (error[chosen] <= bound[chosen]).all(), (which, c.name)


@pytest.mark.parametrize("name", FORMATS)
def test_infinities_saturate_and_a_nan_shows(name):
    fmt, infinite, nan = parse(name), case(name, "infinite"), case(name, "nan")
    assert np.isfinite(infinite).all()
    assert infinite[3, 0] > (440 if name in SHORT else 1e37)
    q = jax.tree.map(lambda a: a[CASES.index("nan")], results(name)[0])
    if fmt.scale is None:
        assert np.isnan(nan[3, 0])
        return
    assert np.isnan(nan[3, 0])
    with pytest.raises(ValueError, match="scales"):
        check(q)
    if fmt.local and isinstance(fmt.scale, str) and not fmt.tensor and fmt.across == 1:
        assert np.isfinite(nan[:, 1:]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_quantizing_twice_changes_nothing(name):
    # Not so where the largest magnitude is not kept (absmax/7.5, CrossQuant), becomes a power of two that belongs to
    # the next binade (8 of FP-Quant), or where the second choice is made without a special value that nothing took.
    fmt, q = parse(name), results(name)[0]
    if fmt.rule in ("half", "fpquant") or fmt.alpha is not None or "bitmod" in name:
        return
    again = np.asarray(dequantize(quantize(dequantize(q), name, batch_axes=1)))
    at = [CASES.index(which) for which in ("ties", "normal", "eight times", "sorted")]
    np.testing.assert_array_equal(again[at], results(name)[1][at])


@pytest.mark.parametrize("name", ["nvfp4_4over6", "int8_cross0.15_narrow_f32"])
def test_mapped_and_eager_are_the_same(name):
    q, w = results(name)[0], jnp.asarray(stack())
    mapped = jax.vmap(lambda x: quantize(x, name))(w)
    jax.tree.map(np.testing.assert_array_equal, mapped, q)
    with jax.disable_jit():
        eager = quantize(w[1], name)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1]), eager, q)


@pytest.mark.parametrize("name", FORMATS)
def test_a_power_of_two_moves_only_the_scales(name):
    if "cross" not in name and "cast" not in name:
        np.testing.assert_array_equal(case(name, "eight times"), 8 * case(name, "normal"))


@pytest.mark.parametrize("name", FORMATS)
def test_order_is_kept_within_a_block(name):
    fmt = parse(name)
    if fmt.alpha is None:
        g, _ = quantize_numpy.size(fmt, (64, 8))
        assert (np.diff(case(name, "sorted").reshape(64 // g, g, 8), axis=1) >= 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_well_formed_and_sliced_by_a_tree_map(name):
    q, _ = results(name)
    for i in (0, 3, 9):
        one = jax.tree.map(lambda a, i=i: a[i], q)
        check(one)
        assert one.meta == q.meta
    fmt = parse(name)
    index = 0 if q.table is None else q.meta.element.choice_bits * q.table[0].size
    assert isinstance(fmt.rule, Choice) or index == 0
    plain = fmt.candidates[0].blocked(fmt.block, fmt.across)
    w = jnp.asarray(stack()[0])
    expected = bits_per_weight(jax.eval_shape(lambda w: quantize(w, plain), w)) + index / w.size  # compiles nothing
    assert bits_per_weight(jax.tree.map(lambda a: a[:1], q)) == pytest.approx(expected)
