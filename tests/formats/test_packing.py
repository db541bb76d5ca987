"""Packing against numpy's bit functions, for every width, sign and ragged length."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qjax.formats import from_words, pack, unpack, words


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("n", [1, 33, 64])
def test_packing_is_dense_and_little_endian(bits, n):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, n)).astype(np.uint8 if bits <= 8 else np.uint16)
    stream = ((codes[..., None] >> np.arange(bits)) & 1).reshape(3, -1)
    expected = np.packbits(stream, axis=-1, bitorder="little")
    packed = jax.jit(pack, static_argnums=1)(codes, bits)
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(unpack(packed, bits, n), codes)


@pytest.mark.parametrize("bits", [*range(1, 9), 11, 16])
def test_signed_codes_survive(bits):
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8 if bits <= 8 else np.int16)
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, len(codes), signed=True), codes)


def test_words_are_little_endian_int32():
    data = np.random.default_rng(0).integers(0, 256, (2, 13)).astype(np.uint8)
    expected = np.pad(data, [(0, 0), (0, 3)]).view("<i4")
    np.testing.assert_array_equal(words(data), expected)
    np.testing.assert_array_equal(from_words(words(data), 13), data)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.16"):
        pack(np.zeros(4, np.uint8), 17)
    with pytest.raises(ValueError, match="take 2 bytes"):
        unpack(np.zeros(3, np.uint8), 4, 4)
