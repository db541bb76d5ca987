"""Block types of ggml: bytes against gguf, encoders against gguf's and against recorded digests of libggml's."""

from __future__ import annotations

import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

import qjax
from qjax import ggml
from qjax.formats import Format, Int, as_format, describe, parse, spell
from qjax.solvers.gptq import factor, sweep
from tests.reference.ggml_blocks import DIGESTS, digest, importance, weights

TYPES = ggml.TYPES
# TQ1_0 and TQ2_0 are one array, and Q5_K's encoder is Q4_K's with more codes; `make oracle` has all, weighted and not.
ENCODED = [name for name in TYPES if name not in ("tq2_0", "q5_k")]
CASES = [(name, False) for name in TYPES if name != "q5_k"] + [(name, True) for name in ("q4_0", "q3_k", "q4_k")]


def kind(name):
    return GGMLQuantizationType[name.upper()]


@functools.cache
def rows(name, seed=0):
    """Random bytes of four rows of two blocks: every code, and scales of every pattern."""
    t = TYPES[name]
    data = np.random.default_rng(seed).integers(0, 256, (4, 2 * t.nbytes), dtype=np.uint8)
    if name == "mxfp4":
        data[:, :: t.nbytes] = np.random.default_rng(1).integers(2, 255, (4, 2))
    return data


def kernel(name, w, weights=None):
    """Rows `w` as a quantized kernel [columns, rows]."""
    weights = None if weights is None else jnp.asarray(weights)[:, None]
    return qjax.quantize(jnp.asarray(w.T), TYPES[name].format, weights=weights)


def file(name, w, weights=None):
    return np.asarray(ggml.to_bytes(kernel(name, w, weights), name))


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.parametrize("name", TYPES)
def test_sizes_are_ggufs(name):
    t = TYPES[name]
    assert (t.block, t.nbytes) == gguf.GGML_QUANT_SIZES[kind(name)]
    assert t.bits_per_weight == 8 * t.nbytes / t.block


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bytes_decode_as_gguf_and_come_back(name):
    """Bit for bit whatever the bytes; random halves are infinities and NaN too."""
    data, t = rows(name), TYPES[name]
    q = ggml.from_bytes(jnp.asarray(data), name)
    assert q.shape == (2 * t.block, 4) and q.dtype == np.float32
    ours, theirs = np.asarray(qjax.dequantize(q)).T, quants.dequantize(data, kind(name))
    if name in ("mxfp4", "nvfp4"):  # E2M1 has a minus zero
        np.testing.assert_array_equal(np.where(ours == 0, 0, ours), np.where(np.abs(theirs) < 2.0**-126, 0, theirs))
    else:
        same_bits(ours, theirs)
    back = np.asarray(ggml.to_bytes(q, name))
    if name == "tq1_0":  # 256 patterns of 243 values: those that ggml writes come back
        np.testing.assert_array_equal(quants.dequantize(back, kind(name)), theirs)
    elif name == "nvfp4":
        scales = data.reshape(-1, 36)[:, :4] & 0x7F
        np.testing.assert_array_equal(back.reshape(-1, 36)[:, :4], np.where(scales == 0x7F, 0, scales))
        np.testing.assert_array_equal(back.reshape(-1, 36)[:, 4:], data.reshape(-1, 36)[:, 4:])
    else:
        np.testing.assert_array_equal(back, data)


def test_the_ends_of_mxfp4s_scale():
    """Numbers below float32's normal ones are zero, and 255 is NaN."""
    data = np.full((4, 17), 0x71, np.uint8)  # codes 0.5 and 6
    data[:, 0] = 0, 1, 2, 255
    q = ggml.from_bytes(jnp.asarray(data), "mxfp4", axis=-1)
    values = np.asarray(qjax.dequantize(q))[:, [0, 16]]
    np.testing.assert_array_equal(values[1:3], [[0, 6 * 2.0**-126], [2.0**-126, 6 * 2.0**-125]])
    assert values[0].tolist() in ([0, 0], [0, 6 * 2.0**-127]) and np.isnan(values[3]).all()


def test_axes():
    """The blocks of each row stay its own, wherever rows and batch axes lie."""
    data = rows("q3_k").reshape(2, 2, -1)
    along = ggml.from_bytes(jnp.asarray(data), "q3_k", axis=-1)
    across = ggml.from_bytes(jnp.asarray(data), "q3_k")
    assert along.shape == (2, 2, 512) and across.shape == (2, 512, 2) and across.batch_shape == (2,)
    jax.tree.map(same_or_equal, qjax.transpose(across), along)
    for q in (along, across, qjax.transpose(across)):
        np.testing.assert_array_equal(ggml.to_bytes(q), data)
    one = ggml.from_bytes(jnp.asarray(data[1, 0]), "q3_k", axis=-1)
    assert one.shape == (512,)
    same_bits(qjax.dequantize(one), qjax.dequantize(along)[1, 0])
    np.testing.assert_array_equal(ggml.to_bytes(one), data[1, 0])


def same_or_equal(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4"])
def test_bytes_are_ggufs(name):
    w = weights()
    w[12] = np.abs(w[12]) + w[6]  # gguf differs from libggml in the signs of zeros
    w = np.where(w == 0, np.float32(0), w)
    np.testing.assert_array_equal(file(name, w), quants.quantize(w, kind(name)))


@pytest.mark.parametrize(("name", "weighted"), CASES)
def test_bytes_are_libggmls(name, weighted):
    assert digest(file(name, weights(), importance() if weighted else None)) == DIGESTS[name, weighted]


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_fp4_near_its_edges(name):
    """Peaks around powers of two, where a float32 logarithm is off, and around the steps of the scale; all ties."""
    peak = np.ldexp(1 + np.arange(-120, 120) * 2.0**-23, np.arange(240) % 9 * (14 if name == "mxfp4" else 1) - 4)
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -5, -0.0, 1e-9])
    w = np.zeros((24, 512))
    w.reshape(-1, 16)[:, :12] = ties * np.resize(peak, 768)[:, None] / 8
    w.reshape(-1, 16)[:, 12] = np.resize(peak, 768)
    w = w.astype(np.float32)
    if name == "mxfp4":
        np.testing.assert_array_equal(file(name, w), quants.quantize(w, kind(name)))
        return
    q = kernel(name, w)
    scales, values = np.asarray(q.scales[0].codes).T.reshape(-1), np.asarray(qjax.dequantize(q)).T.reshape(-1, 16)
    peaks = np.abs(w).reshape(-1, 16).max(axis=1) / np.float32(6)
    np.testing.assert_array_equal(scales, quants.NVFP4.fp32_to_ue4m3(peaks))
    unit = quants.NVFP4.ue4m3_to_fp32(scales).astype(np.float32)
    grid = unit[:, None, None] * np.float32(quants.NVFP4.kvalues)
    nearest = np.argmin(np.abs(grid - w.reshape(-1, 16, 1)), axis=-1)
    np.testing.assert_array_equal(values, np.take_along_axis(grid[:, 0], nearest, axis=1))


@pytest.mark.parametrize("name", ENCODED)
def test_hostile_numbers(name):
    """Zeros stay zeros, tiny ones fade, large ones saturate and infinities with them; a NaN is named."""
    w = np.tile(weights()[13:14] / np.abs(weights()[13]).max(), (24, 1)).astype(np.float32)
    sizes = (0, -0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1e-12, 1e-7, 1e7, 1e12, 1e30, 3e38)
    for row, size in enumerate(sizes):
        w[row] *= np.float32(size)
    w[12, 7], w[13, 7], w[14] = np.inf, -np.inf, np.inf
    w[15, 7] = np.nan
    q = kernel(name, w)
    values = np.asarray(qjax.dequantize(q)).T
    assert np.isfinite(np.delete(values, 15, axis=0)).all() and (values[:2] == 0).all()
    assert np.isnan(values[15, : TYPES[name].block]).all() and np.isfinite(values[15, TYPES[name].block :]).all()
    # Large numbers keep their sign and saturate where the largest scale and code end; a minimum shifts that end.
    large = np.abs(w[8:12]) > np.abs(w[8:12]).max(axis=1, keepdims=True) / 2
    assert (values[8:12] * np.sign(w[8:12]) > 0)[large].all()
    fmt = TYPES[name].format
    unit = {"mxfp4": 2.0**125, "nvfp4": 1}.get(name, 65504)
    if isinstance(fmt.scale, Format):
        unit *= max(-fmt.scale.element.min, fmt.scale.element.max)
    reach = unit * max(-fmt.element.min, fmt.element.max)
    low = 1 - 1 / fmt.element.max if fmt.offset else 0.88 if name == "iq4_nl" else 0.98
    assert 0.99 * low * reach <= np.abs(values[11]).max() <= reach
    assert values[12, 7] > 0 > values[13, 7] and (values[14] > 0).all()
    with pytest.raises(ValueError, match=r"layers/3/q.*(nan|no finite)"):
        qjax.check(q, "layers/3/q")


@pytest.mark.parametrize("name", ENCODED)
def test_powers_of_two_move_the_scales_alone(name):
    w = np.tile(weights()[17:23] * np.float32(16), (4, 1))  # all scales normal halves
    q, larger = kernel(name, w), kernel(name, w * 8)
    np.testing.assert_array_equal(larger.codes, q.codes)
    same_bits(qjax.dequantize(larger), np.asarray(qjax.dequantize(q)) * 8)
    qjax.check(q)


@pytest.mark.parametrize("name", [n for n in ENCODED if TYPES[n].format.block == TYPES[n].block and n != "iq4_nl"])
def test_what_is_on_the_grid_stays(name):
    """Types without a search; k-quants and IQ4_NL look for a better scale even there."""
    w = weights()
    values = np.asarray(qjax.dequantize(kernel(name, w))).T
    np.testing.assert_array_equal(np.asarray(qjax.dequantize(kernel(name, values))).T, values)


def test_importance_lessens_the_weighted_error():
    """By more than a quarter, where a few inputs matter a hundred times more than the others."""
    w, h = weights(), importance()

    def error(q):
        return np.sum((np.asarray(qjax.dequantize(q)).T - w)[13:] ** 2 * h)

    for name in ("q4_0", "q4_k"):
        assert error(kernel(name, w, h)) < 0.75 * error(kernel(name, w))


def test_empty_blocks_are_well_formed():
    for name in ("q4_0", "q4_1", "q3_k", "iq4_nl", "mxfp4", "nvfp4"):
        qjax.check(kernel(name, np.zeros_like(weights())))
        qjax.check(kernel(name, weights()[[0, 1, 2, 5, 6, 7] * 4]))


@pytest.mark.parametrize("name", TYPES)
def test_names(name):
    fmt = TYPES[name].format
    assert parse(f"ggml_{name}") == fmt and parse(spell(fmt)) == fmt
    assert parse("mxfp4").rule == "floor" and parse("nvfp4").rule == "absmax"
    assert spell(fmt) == {"mxfp4": "ggml_mxfp4", "nvfp4": "ggml_nvfp4", "tq2_0": "tq1_0"}.get(name, name)
    assert "ggml" in describe(fmt)
    assert ggml.type_of(fmt).name == ("tq1_0" if name == "tq2_0" else name)


def test_this_projects_fp4_is_ggmls():
    """Their structure is one, so that arrays quantized by the standards' rules can be written as GGUF."""
    w = jnp.asarray(weights()[13:17].T)
    for name in ("mxfp4", "nvfp4"):
        q = qjax.quantize(w, name)
        data = ggml.to_bytes(q)
        assert ggml.type_of(q).name == name
        unit = q.scales[0].scales[0] if name == "nvfp4" else jnp.ones((1, 1))
        theirs = quants.dequantize(np.asarray(data), kind(name)).T
        np.testing.assert_allclose(theirs * np.asarray(unit), qjax.dequantize(q), rtol=1e-7)


def test_fallbacks_are_llama_cpps():
    for name, other in {
        "q2_k": "q4_0",
        "q3_k": "q4_0",
        "q4_k": "q5_0",
        "q5_k": "q5_1",
        "q6_k": "q8_0",
        "tq1_0": "q4_0",
    }.items():
        assert [ggml.fallback(name, n) for n in (512, 576, 40)] == [name, other, "f16"]
    assert ggml.fallback("q8_0", 32) == "q8_0"


def test_solvers_take_the_types():
    w = jnp.asarray(weights()[13:17].T)
    nearest = qjax.solvers.rtn(w, "q4_0")
    np.testing.assert_array_equal(nearest.codes, qjax.quantize(w, "q4_0").codes)
    x = np.cumsum(np.random.default_rng(0).normal(size=(2000, 512)), axis=1).astype(np.float32)  # neighbours alike
    solved, _ = sweep(w, factor(jnp.asarray(x.T @ x)), "q4_0")
    before, after = (np.sum((x @ np.asarray(w - qjax.dequantize(q))) ** 2) for q in (nearest, solved))
    assert ggml.type_of(solved).name == "q4_0" and after < 0.1 * before
    np.testing.assert_array_equal(solved.scales[0], nearest.scales[0])
    assert ggml.to_bytes(solved).shape == (4, 16 * 18)


def test_blocks_are_kept_by_map_batch_and_product():
    stack = jnp.asarray(weights()[13:21].reshape(2, 4, 512).swapaxes(1, 2))
    together = qjax.quantize(stack, "ggml_nvfp4", batch_axes=1)
    mapped = jax.vmap(lambda w: qjax.quantize(w, "ggml_nvfp4"))(stack)
    jax.tree.map(np.testing.assert_array_equal, together, mapped)
    q = kernel("q3_k", weights())
    x = jnp.ones((3, 512))
    np.testing.assert_allclose(qjax.matmul(x, q), x @ qjax.dequantize(q), rtol=2e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: qjax.quantize(jnp.ones((576, 4)), "q4_k"), "do not divide axis -2.*llama.cpp takes q5_0"),
        (lambda: qjax.quantize(jnp.ones((40, 4)), "q4_0"), "blocks of q4_0 are 32 long, .*axis -2"),
        (lambda: qjax.quantize(jnp.ones((32, 4)), "q4_2"), "close names: .*q4_0"),
        (lambda: qjax.quantize(jnp.ones((32, 4)), "q4_0", range=qjax.ranges.mse()), "chooses all scales"),
        (lambda: qjax.quantize(jnp.ones((32, 4)), Format(Int(7), 32, scale="float16", rule="ggml")), "no block type"),
        (lambda: ggml.from_bytes(jnp.zeros((4, 143), jnp.uint8), "q4_k"), r"n \* 144"),
        (lambda: ggml.from_bytes(jnp.zeros((4, 144), jnp.int8), "q4_k"), "int8"),
        (lambda: ggml.from_bytes(jnp.zeros((4, 144), jnp.uint8), "q4_k", axis=0), "axis=0"),
        (lambda: ggml.from_bytes(jnp.zeros(144, jnp.uint8), "q4_k"), "axis=-2"),
        (lambda: ggml.from_bytes(jnp.zeros((4, 144), jnp.uint8), "q4_x"), "unknown ggml type 'q4_x'"),
        (lambda: ggml.to_bytes(qjax.quantize(jnp.ones((64, 4)), "int4_g64")), "no block type"),
        (lambda: ggml.to_bytes(qjax.quantize(jnp.ones((64, 4)), "mxfp4"), "q4_0"), "is not q4_0"),
        (lambda: ggml.type_of(qjax.quantize(jnp.ones((40, 4)), "mxfp4")), "no block type"),
        (lambda: ggml.type_of("int4_g32"), "no block type that is int4_g32"),
        (lambda: ggml.fallback("q4_x", 32), "unknown ggml type"),
        (lambda: ggml.fallback("q4_0", 40), "no replacement"),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_formats_are_equal_by_value():
    assert as_format("q4_k") == TYPES["q4_k"].format and hash(as_format("q4_k")) == hash(TYPES["q4_k"].format)
