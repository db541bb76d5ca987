"""Block scales against torch's libraries on CPU: four over six, NVFP4 without a tensor scale, NVINT4, MXFP6."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import dequantize, quantize
from tests.oracle.test_formats_oracle import weights

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("name", "dtype", "rule"),
    [
        ("nvfp4", "nvfp4", "static_6"),
        ("nvfp4_4over6", "nvfp4", "mse"),
        ("nvfp4_4over6_mae", "nvfp4", "mae"),
        ("nvfp4_4over6_max", "nvfp4", "abs_max"),
        ("nvint4", "nvint4", "static_6"),
        ("mxfp4_rceil", "mxfp4", "static_6"),
    ],
)
def test_four_over_six(name, dtype, rule):
    fouroversix = pytest.importorskip("fouroversix")
    from fouroversix.quantize import dequantize as theirs

    w = np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32)
    config = fouroversix.QuantizationConfig(
        backend=fouroversix.QuantizeBackend.pytorch,
        dtype=getattr(fouroversix.DataType, dtype),
        scale_rule=getattr(fouroversix.ScaleRule, rule),
    )
    expected = theirs(fouroversix.quantize_to_fp4(torch.tensor(w), config), torch.float32).numpy()
    ours = np.asarray(dequantize(quantize(jnp.asarray(w), name, axis=-1)))
    # The tensor scale is a reciprocal of a reciprocal there, an ulp off; that decides near-ties of codes and choices.
    close = np.isclose(ours, expected, rtol=1e-5, atol=0)
    assert close.mean() > 0.998
    assert close.reshape(-1, 16).all(-1).mean() > 0.995
    # Of what the choice compares, as much is left: candidates that tie in it may differ in other measures.
    measure = {"mae": np.mean, "abs_max": lambda e: e.reshape(-1, 16).max(-1).mean()}.get(rule, lambda e: np.mean(e**2))
    assert measure(np.abs(ours - w)) == pytest.approx(measure(np.abs(expected - w)), rel=1e-4)


def test_nvfp4_without_a_tensor_scale_is_torchaos():
    pytest.importorskip("torchao")
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    w = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    theirs = NVFP4Tensor.to_nvfp4(torch.tensor(w))
    q = quantize(jnp.asarray(w), "nvfp4_e4m3", axis=-1)
    scales = np.asarray(q.scales[0]).view(np.uint8)
    np.testing.assert_array_equal(scales, theirs.scale.view(torch.uint8).numpy().reshape(scales.shape))
    np.testing.assert_array_equal(dequantize(q), theirs.dequantize(torch.float32).numpy())


@pytest.mark.parametrize(("name", "dtype"), [("mxfp6_e2m3", "DTYPE_FP6_E2M3"), ("mxfp6_e3m2", "DTYPE_FP6_E3M2")])
def test_mxfp6_is_torchaos(name, dtype):
    pytest.importorskip("torchao")
    constants = pytest.importorskip("torchao.prototype.mx_formats.constants")
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    if not hasattr(constants, dtype):
        pytest.skip("this torchao has no MXFP6")
    w = weights()
    theirs = MXTensor.to_mx(torch.tensor(w), getattr(constants, dtype), 32)
    ours = dequantize(quantize(jnp.asarray(w), name, axis=-1))
    np.testing.assert_array_equal(ours, theirs.dequantize(torch.float32).numpy())


@pytest.mark.parametrize("shape", [(128, 128), (32, 32)])
def test_fp8_tiles_are_compressed_tensors(shape):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    w = np.random.default_rng(0).normal(size=(256, 384)).astype(np.float32)
    args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="block", block_structure=list(shape))
    tiles = torch.tensor(w).reshape(256 // shape[0], shape[0], 384 // shape[1], shape[1])
    scale, zero = calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), args)
    theirs = fake_quantize(torch.tensor(w), scale, zero, args).numpy()
    q = quantize(jnp.asarray(w), f"fp8_e4m3_t{shape[1]}x{shape[0]}_f32", axis=-1)
    np.testing.assert_allclose(q.scales[0], scale.numpy(), rtol=2e-7)
    assert np.mean(np.isclose(dequantize(q), theirs, rtol=1e-6, atol=0)) > 0.999
