"""HQQ against torchao's, on CPU: the objective as a bound, not bits, since each of our groups keeps its best."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.formats import Format, Int
from qjax.quantization import dequantize, quantize
from qjax.solvers import hqq

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_torchao(bits):
    pytest.importorskip("torchao")
    from torchao.quantization.quant_primitives import _choose_qparams_and_quantize_affine_hqq

    w = np.random.default_rng(bits).standard_t(4, size=(48, 256)).astype(np.float32)
    codes, scale, zero, _ = _choose_qparams_and_quantize_affine_hqq(
        torch.tensor(w), nbits=bits, group_size=64, compute_dtype=torch.float32, device="cpu", raw_output=True
    )
    codes, scale, zero = (x.numpy().reshape(48 * 4, -1).astype(np.float32) for x in (codes, scale, zero))
    theirs = ((codes - zero) * scale).reshape(w.shape)
    f = Format(Int(bits, signed=False), 64, scale="float32", rule="minmax", offset="minimum")
    q = hqq(jnp.asarray(w.T), f)
    ours = np.asarray(dequantize(q)).T

    def error(values):
        return float((np.abs(w - values) ** 0.7).mean())

    plain = error(np.asarray(dequantize(quantize(jnp.asarray(w.T), f))).T)
    assert error(ours) < 1.005 * error(theirs) < 1.005 * plain
    # The same scales, and codes at most one apart, where the zeros came to rest elsewhere.
    np.testing.assert_allclose(np.asarray(q.scales[0]).T.reshape(-1), scale[:, 0], rtol=1e-4)
    assert np.mean(np.abs(np.asarray(q.codes).T.reshape(codes.shape).astype(np.float32) - codes) <= 1) > 0.999
