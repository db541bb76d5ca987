"""Packing against numpy's bit functions, for every width, sign and ragged length."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qjax.formats import from_words, pack, unpack, words


def there_and_back(codes, bits, signed=False):
    """Each of `codes` packed and unpacked again, in one program."""

    @jax.jit
    def run(codes):
        packed = [pack(c, bits) for c in codes]
        return packed, [unpack(p, bits, c.shape[-1], signed) for p, c in zip(packed, codes, strict=True)]

    return run(codes)


@pytest.mark.parametrize("bits", range(1, 17))
def test_packing_is_dense_and_little_endian(bits):
    random, dtype = np.random.default_rng(bits), np.uint8 if bits <= 8 else np.uint16
    codes = [random.integers(0, 2**bits, (3, n)).astype(dtype) for n in (1, 33, 64)]
    for given, packed, back in zip(codes, *there_and_back(codes, bits), strict=True):
        stream = ((given[..., None] >> np.arange(bits)) & 1).reshape(3, -1)
        np.testing.assert_array_equal(packed, np.packbits(stream, axis=-1, bitorder="little"))
        np.testing.assert_array_equal(back, given)
        assert back.dtype == dtype


@pytest.mark.parametrize("bits", [*range(1, 9), 11, 16])
def test_signed_codes_survive(bits):
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8 if bits <= 8 else np.int16)
    _, (back,) = there_and_back([codes], bits, signed=True)
    np.testing.assert_array_equal(back, codes)
    assert back.dtype == codes.dtype


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
