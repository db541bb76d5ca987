"""The scan over groups beside its reference, and the nibble packing over every pair of codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kernels import groups
from tests import draw


@pytest.mark.parametrize(("lowest", "dtype"), [(-8, "int8"), (0, "uint8")])
def test_every_pair_of_codes_survives_packing(lowest, dtype):
    codes = np.arange(lowest, lowest + 16).astype(dtype)
    pairs = jnp.asarray(np.stack(np.meshgrid(codes, codes, indexing="ij")).reshape(2, -1))  # [K = 2, N = 256]
    packed = groups.pack_nibbles(pairs, lowest, 2)
    assert packed.shape == (1, 1, 256) and len(set(np.asarray(packed).ravel().tolist())) == 256
    back = groups.unpack_nibbles(packed, lowest, dtype)
    assert back.dtype == pairs.dtype and bool((back == pairs).all())


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("packed", [True, False])
def test_matmul_is_exact_where_sums_are(size, packed):
    """Small integers and power-of-two scales: every order of summation gives the same float32."""
    K, N = 256, 6
    codes = draw.integers(0, 0, 16, K, N, dtype=np.uint8)
    x = draw.integers(1, -4, 5, 3, K, dtype=np.float32)
    scale = 2.0 ** draw.integers(2, -3, 3, K // size, N, dtype=np.float32)
    zero = draw.integers(3, 0, 16, K // size, N, dtype=np.float32)
    minimum = draw.integers(4, -4, 4, K // size, N, dtype=np.float32)
    stored = groups.pack_nibbles(codes, 0, size) if packed else codes.reshape(K // size, size, N)
    offsets = ((zero, None), (8.0, None), (0.0, minimum))
    found = jax.jit(lambda x: [groups.matmul(x, stored, scale, z, m) for z, m in offsets])(x)
    wanted = jax.jit(lambda x: [groups.reference(x, stored, scale, z, m) for z, m in offsets])(x)
    for y, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(y, want)
