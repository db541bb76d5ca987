"""The compiled CPU kernel against numpy on every instruction set here: shapes, hostile numbers, and how it is built."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kernels.cpu import building, nibble_words
from qjax.kernels.cpu.nibble_words import Coding
from tests import draw

PLAIN, ZERO, MINIMUM = Coding(8), Coding(0, "zero_point"), Coding(0, "minimum")

needs_kernel = pytest.mark.skipif(nibble_words.problem() is not None, reason=str(nibble_words.problem()))


def weights(codes, scale, offset, coding):
    """W [K, N] in float64, from the formula."""
    s, o = (
        None if a is None else np.repeat(np.asarray(a, np.float64), len(codes) // len(a), 0) for a in (scale, offset)
    )
    W = np.asarray(codes, np.float64)
    if coding.offset == "minimum":
        return W * s + o
    return (W if o is None else W - o) * s


def run(x, codes, scale, offset, coding, isa="best"):
    """One matrix through the kernel, as numpy; skips where the processor lacks the instruction set."""
    K, N = codes.shape
    nibbles = (np.asarray(codes) + coding.center).astype(np.uint32).reshape(K // 8, 8, N // 32, 32)
    words = np.bitwise_or.reduce(nibbles << np.arange(0, 32, 4, np.uint32)[:, None, None], axis=1)
    words = jnp.asarray(words.swapaxes(0, 1)[None])
    try:
        y = nibble_words.matmul(
            jnp.asarray(x)[None],
            words,
            jnp.asarray(scale)[None],
            None if offset is None else jnp.asarray(offset)[None],
            coding,
            isa,
        )
        return np.asarray(y[0])
    except jax.errors.JaxRuntimeError as error:
        if "lacks" not in str(error):
            raise
        pytest.skip(f"this processor lacks {isa}")


@pytest.mark.parametrize(("center", "dtype"), [(8, "int8"), (0, "uint8")])
def test_every_code_survives_in_every_place(center, dtype):
    codes = ((np.arange(16)[:, None] + np.arange(64)) % 16 - center).astype(dtype)  # each code in every row
    words = nibble_words.pack(jnp.asarray(codes), center)
    assert words.shape == (2, 2, 32) and words.dtype == jnp.uint32
    assert int(words[1, 1, 3]) == sum((int(codes[8 + j, 35]) + center) << 4 * j for j in range(8))
    back = nibble_words.unpack(words, center, dtype)
    assert back.dtype == dtype and bool((back == codes).all())


@needs_kernel
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "vnni"])
@pytest.mark.parametrize(
    ("coding", "K", "group", "N", "tokens"),
    [  # rows of x go 48 at a time, in blocks of 6 or 16 and fewer
        (PLAIN, 128, 64, 96, 49),
        (ZERO, 264, 88, 32, 50),
        (MINIMUM, 392, 8, 32, 51),
        (PLAIN, 256, 256, 64, 52),
        (ZERO, 64, 16, 32, 59),
    ],
)
def test_exact_where_sums_are(isa, coding, K, group, N, tokens):
    """Small integers and power-of-two scales: every order of summation gives the same float32."""
    x = draw.integers(1, -4, 5, tokens, K, dtype=np.float32)
    codes = draw.integers(0, 0, 16, K, N, dtype=np.int32) - coding.center
    scale = 2.0 ** draw.integers(2, -3, 3, K // group, N, dtype=np.float32)
    offset = None if coding.offset is None else draw.integers(3, 0, 16, K // group, N, dtype=np.float32)
    W = weights(codes, scale, offset, coding)
    for count in (1, 3, tokens):
        assert (run(x[:count], codes, scale, offset, coding, isa) == x[:count] @ W).all()


@needs_kernel
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "vnni"])
@pytest.mark.parametrize("coding", [PLAIN, ZERO, MINIMUM])
def test_every_height_of_a_block(isa, coding):
    x = draw.integers(1, -4, 5, 16, 32, dtype=np.float32)
    codes = draw.integers(0, 0, 16, 32, 32, dtype=np.int32) - coding.center
    scale = 2.0 ** draw.integers(2, -3, 3, 2, 32, dtype=np.float32)
    offset = None if coding.offset is None else draw.integers(3, 0, 16, 2, 32, dtype=np.float32)
    W = weights(codes, scale, offset, coding)
    for count in range(1, 17):
        assert (run(x[:count], codes, scale, offset, coding, isa) == x[:count] @ W).all()


@needs_kernel
@pytest.mark.parametrize("coding", [PLAIN, ZERO, MINIMUM, Coding(0, "float_zero")])
def test_error_is_a_few_roundings(coding):
    K, group, N = 512, 32, 64
    x, scale = np.array(draw.normal(0, 7, K)), np.abs(np.array(draw.normal(1, K // group, N)))
    codes = draw.integers(2, 0, 16, K, N, dtype=np.int32) - coding.center
    whole = coding.offset in (None, "zero_point")
    offset = None if coding.offset is None else np.array(draw.normal(3, K // group, N) * 4 + 8).round(0 if whole else 7)
    W = weights(codes, scale, offset, coding)
    bound = np.abs(x.astype(np.float64)) @ (np.abs(W) + np.repeat(np.abs(scale), group, 0))
    for tokens in (1, 7):
        assert (np.abs(run(x[:tokens], codes, scale, offset, coding) - x[:tokens] @ W) <= 5e-7 * bound[:tokens]).all()


@needs_kernel
def test_bfloat16_scales_are_their_float32_values():
    x, codes = draw.normal(0, 3, 64), draw.integers(1, -8, 8, 64, 32, dtype=np.int32)
    scale = jnp.asarray(draw.normal(2, 4, 32)).astype(jnp.bfloat16)
    for tokens in (1, 3):
        assert (
            run(x[:tokens], codes, scale, None, PLAIN) == run(x[:tokens], codes, scale.astype(jnp.float32), None, PLAIN)
        ).all()


@needs_kernel
@pytest.mark.parametrize("tokens", [1, 3])
def test_hostile_numbers_stay_in_their_column_and_row(tokens):
    K, group, N = 64, 32, 32
    x, codes = np.array(draw.normal(0, tokens, K)), draw.integers(1, -8, 8, K, N, dtype=np.int32)
    scale = np.ones((K // group, N), np.float32)
    scale[1, :6] = np.inf, np.nan, 1e-40, 3e38, 0.0, -np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        W = weights(codes, scale, None, PLAIN).astype(np.float32)
        expected = (x @ W.astype(np.float64)).astype(np.float32)
    y, fine = run(x, codes, scale, None, PLAIN), np.isfinite(expected)
    assert not np.isfinite(y[:, [0, 1, 5]]).any() and fine[:, [2, 4]].all() and fine[:, 6:].all()
    np.testing.assert_allclose(y[fine], expected[fine], rtol=2e-5, atol=1e-4)
    for bad in (np.inf, np.nan):
        hurt = np.concatenate([x, x])  # another row beside each
        hurt[0, 5] = bad
        y = run(hurt, codes, np.ones_like(scale), None, PLAIN)
        assert not np.isfinite(y[0]).any() and np.isfinite(y[1:]).all()


@needs_kernel
def test_no_rows_and_shapes_that_do_not_fit():
    assert run(np.ones((0, 64), np.float32), np.ones((64, 32), np.int32), np.ones((2, 32)), None, PLAIN).shape == (
        0,
        32,
    )
    words, x = jnp.zeros((1, 1, 8, 32), jnp.uint32), jnp.zeros((1, 1, 64))
    for scale in (jnp.ones((1, 3, 32)), jnp.ones((1, 2, 16)), jnp.ones((1, 16, 32))):
        with pytest.raises(jax.errors.JaxRuntimeError, match="do not fit each other"):
            nibble_words.matmul(x, words, scale, None, PLAIN).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="lacks neon9"):
        nibble_words.matmul(x, words, jnp.ones((1, 2, 32)), None, PLAIN, "neon9").block_until_ready()


@needs_kernel
@pytest.mark.parametrize("coding", [PLAIN, ZERO, MINIMUM])
@pytest.mark.parametrize("size", [1e-35, 1e-6, 1e30])
def test_digits_keep_what_floats_would(coding, size):
    """Numbers beside one 2^20 times as large, whatever the order of magnitude."""
    K, group, N = 128, 64, 32
    x = np.array(draw.normal(0, 1, K)) * np.float32(size)
    x[0, 5] = 2.0**20 * size
    codes = np.array(draw.integers(1, 0, 16, K, N, dtype=np.int32)) - coding.center
    codes[5, ::2] = 0  # where the large one counts nothing
    scale = np.abs(np.array(draw.normal(2, K // group, N)))
    offset = None if coding.offset is None else np.zeros((K // group, N), np.float32)
    W = weights(codes, scale, offset, coding)
    error = np.abs(run(x, codes, scale, offset, coding) - x @ W)
    lost = 2.0**-10 * size  # half of 2^-30 of the power of two above the largest
    assert (error <= 5e-7 * (np.abs(x.astype(np.float64)) @ np.abs(W)) + lost * np.abs(W).sum(0)).all()


def test_building(tmp_path, monkeypatch):
    """Built once and kept; a compiler's complaint and the lack of one are told."""
    source = tmp_path / "tiny.cc"
    source.write_text('extern "C" int four() { return 4; }')
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        patch.delenv("CXX", raising=False)
        with pytest.raises(RuntimeError, match=r"no C\+\+ compiler.*install one"):
            building.build(source, folder=tmp_path)
        patch.setenv("CXX", "hammer")
        with pytest.raises(RuntimeError, match="CXX names hammer"):
            building.find_compiler()
    monkeypatch.setenv("QJAX_CACHE_DIR", str(tmp_path / "cache"))
    assert building.cache_folder() == tmp_path / "cache"
    if nibble_words.problem() is not None:
        pytest.skip(nibble_words.problem())
    library = building.build(source)
    made = library.stat().st_mtime_ns
    assert building.build(source) == library and library.stat().st_mtime_ns == made
    (tmp_path / "more.h").write_text("int five();")
    source.write_text('#include "more.h"')
    own = building.build(source)
    (tmp_path / "more.h").write_text("int six();")
    assert building.build(source) != own  # what it includes is part of it
    source.write_text("not C++")
    with pytest.raises(RuntimeError, match="failed"):
        building.build(source)
    assert library in list((tmp_path / "cache").iterdir()) and len(list((tmp_path / "cache").iterdir())) == 3
