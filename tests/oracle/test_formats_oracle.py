"""Formats against torch's quantization libraries and GGUF, on CPU: MX scale rules, NVFP4, affine and symmetric ints."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.formats import pack, words
from qjax.quantization import dequantize, quantize

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")


def weights(seed: int = 0) -> np.ndarray:
    """[out 64, in 128] normal rows of many sizes, ties of e2m1, and maxima between 6 and 8 times a power of two."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(64, 128)) * np.exp2(rng.integers(-6, 6, (64, 1)))
    w[3] = rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0], 128)
    w[4] = rng.uniform(-7.9, 7.9, 128)
    w[5, ::32] = 7.0
    return w.astype(np.float32)


MX_MODES = {"floor": "FLOOR", "rceil": "RCEIL", "even": "EVEN", "ceil": "CEIL"}


@pytest.mark.parametrize("rule", MX_MODES)
@pytest.mark.parametrize(("base", "dtype"), [("mxfp4", "float4_e2m1fn_x2"), ("mxfp8_e4m3", "float8_e4m3fn")])
def test_mx_rules_are_torchaos(rule, base, dtype):
    pytest.importorskip("torchao")
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    w = weights()
    theirs = MXTensor.to_mx(
        torch.tensor(w), getattr(torch, dtype), 32, scaling_mode=getattr(ScaleCalculationMode, MX_MODES[rule])
    )
    q = quantize(jnp.asarray(w), f"{base}_{rule}", axis=-1)
    scales = theirs.scale.view(torch.uint8).numpy()
    np.testing.assert_array_equal(np.asarray(q.scales[0]).view(np.uint8).reshape(scales.shape), scales)
    np.testing.assert_array_equal(dequantize(q), theirs.dequantize(torch.float32).numpy())


def test_nvfp4_is_torchaos():
    pytest.importorskip("torchao")
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    # Blocks of one tensor must lie within the range of e4m3's normal numbers: torchao clips scales there, qjax later.
    w = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    tensor_scale = per_tensor_amax_to_scale(torch.tensor(np.abs(w).max()))
    theirs = NVFP4Tensor.to_nvfp4(torch.tensor(w), per_tensor_scale=tensor_scale)
    q = quantize(jnp.asarray(w), "nvfp4", axis=-1)
    inner = q.scales[0]
    np.testing.assert_allclose(inner.scales[0], tensor_scale.numpy().reshape(1, 1), rtol=2e-7)
    np.testing.assert_array_equal(inner.codes, theirs.scale.view(torch.uint8).numpy().reshape(inner.codes.shape))
    packed = theirs.qdata.view(torch.uint8).numpy()
    np.testing.assert_array_equal(pack(q.codes, 4), packed)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_are_compressed_tensors(bits, symmetric):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    w = weights()
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=64)
    blocks = torch.tensor(w).reshape(64, 2, 64)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    theirs = fake_quantize(torch.tensor(w), scale, zero, args).numpy()
    q = quantize(jnp.asarray(w), f"int{bits}_g64{'' if symmetric else '_affine'}_f32", axis=-1)
    np.testing.assert_allclose(q.scales[0], scale.numpy(), rtol=2e-7)
    # compressed-tensors multiplies where an ulp or an exact tie decides: nearly all elements are equal to the bit.
    ours = np.asarray(dequantize(q))
    assert np.mean(np.isclose(ours, theirs, rtol=1e-6, atol=0)) > 0.999
    if not symmetric:
        np.testing.assert_array_equal(np.asarray(q.offset).astype(int), zero.numpy().astype(int) + 2 ** (bits - 1))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packing_is_compressed_tensors(bits):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (8, 96)).astype(np.int8)
    theirs = pack_to_int32(torch.tensor(codes), bits).numpy()
    unsigned = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    np.testing.assert_array_equal(words(pack(unsigned, bits)), theirs)


def test_signed_rule_is_ggufs_q4_0():
    gguf = pytest.importorskip("gguf")
    w = weights()
    kind = gguf.GGMLQuantizationType.Q4_0
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w, kind), kind)
    ours = np.asarray(dequantize(quantize(jnp.asarray(w), "int4_g32_signed_f16", axis=-1)))
    # GGUF chooses codes with the unrounded scale, and rounds halves up.
    assert np.mean(np.isclose(ours, theirs, rtol=1e-6, atol=0)) > 0.99
    scales = np.asarray(quantize(jnp.asarray(w), "int4_g32_signed_f16", axis=-1).scales[0])
    raw = gguf.quants.quantize(w, kind).reshape(64, 4, 18)[..., :2].copy().view(np.float16)[..., 0]
    np.testing.assert_array_equal(scales, raw)
