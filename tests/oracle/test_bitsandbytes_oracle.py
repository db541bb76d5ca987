"""What bitsandbytes packs, read back, against its own numbers."""

from __future__ import annotations

import numpy as np
import pytest

import qjax
from qjax.io.bitsandbytes import FourBits

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_dequantizes_to_our_numbers(kind, double):
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    w = torch.from_numpy(np.random.default_rng(0).normal(size=(48, 512)).astype(np.float32))
    packed, state = functional.quantize_4bit(w, blocksize=64, quant_type=kind, compress_statistics=double)
    tensors = {f"weight.{name}": a.numpy() for name, a in state.as_dict(packed=True).items()}
    q = FourBits(kind).read("m", {"weight": packed.numpy(), **tensors}, (512, 48))
    qjax.check(q)
    theirs = functional.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(np.asarray(qjax.dequantize(q)).T, theirs, rtol=3e-7, atol=0)
