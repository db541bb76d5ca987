from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.kv import QuantizedCache
from qjax.models import Architecture, Decoder, generate
from qjax.recipes import sorted_keys
from qjax.trace.sites import Program, tapped
from qjax.transforms import cache_quantize

ARCH = Architecture(vocab=32, width=16, layers=1, heads=4, kv_heads=2, head_dim=8, ffn=16)
FORMATS = ("int4", "int3_g4_affine", "fp8_e4m3", "mxfp4")


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_head_of_each_token_is_rounded_alone(fmt):
    cache, x = QuantizedCache(fmt), random(0, 2, 3, 2, 8)
    values, slots = cache.decode(cache.append(cache.init(2, 4, 2, 8), x, jnp.array([[0, 1, 2], [-1, 0, 1]])))
    for b, t, h, at in [(0, 2, 1, 2), (1, 1, 0, 0), (1, 2, 1, 1)]:
        alone = qjax.dequantize(qjax.quantize(x[b, t, h], fmt, axis=-1))
        np.testing.assert_array_equal(values[b, at, h], alone)
    assert slots.tolist() == [[0, 1, 2, -1], [0, 1, -1, -1]]


def test_the_prefix_stays_exact():
    cache, x = QuantizedCache("int2", exact_prefix=2), random(0, 1, 4, 2, 8)
    values, _ = cache.decode(cache.append(cache.init(1, 4, 2, 8), x, jnp.array([[0, 1, 2, 3]])))
    np.testing.assert_array_equal(values[:, :2], x[:, :2])
    assert float(jnp.abs(values[:, 2:] - x[:, 2:]).max()) > 0.1


def test_codes_are_integers_of_the_format():
    state = QuantizedCache("int4").init(1, 4, 2, 8)
    assert state.values.array.codes.dtype == jnp.int8 and qjax.nbytes(state.values.array) == 4 * 2 * (4 + 2)


@pytest.mark.parametrize("scan", [False, True])
def test_taps_without_a_cache_are_the_cache(scan):
    """Perplexity under `cache_quantize` is that of a decoder with the codecs."""
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 32, (2, 6)), jnp.int32)
    plain = Decoder(ARCH, scan=scan)
    params = plain.init(jax.random.key(0))
    program, _ = qjax.run(cache_quantize("int4", "int3_g4_affine"), plain, params, [tokens])
    assert isinstance(program, Program)
    tap = jax.jit(tapped(plain))(program, tokens)
    cached = Decoder(ARCH, scan=scan, key_cache=QuantizedCache("int4"), value_cache=QuantizedCache("int3_g4_affine"))
    positions = jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32), (2, 6))
    logits, _ = jax.jit(cached.decode)(params, cached.init_cache(2, 6), tokens, positions)
    np.testing.assert_allclose(tap, logits, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(tap - plain(params, tokens)).max()) > 1e-2


def test_generation_reads_the_codes_and_the_quantized_weights():
    model = Decoder(ARCH, key_cache=QuantizedCache("int8"), value_cache=QuantizedCache("nvfp4"))
    params, _ = qjax.run(qjax.rtn("int8"), model, model.init(jax.random.key(0)), [jnp.zeros((1, 4), jnp.int32)])
    prompt = jnp.array([[3, 1, 4]])
    words = generate(model, params, prompt, steps=4)
    plain = generate(Decoder(ARCH), params, prompt, steps=4)
    assert words.shape == (1, 4) and words[0, 0] == plain[0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantizedCache("int9000"), "int9000"),
        (lambda: QuantizedCache("int8", exact_prefix=-1), "exact_prefix must not be negative, got -1"),
        (lambda: cache_quantize(None, None), "nothing is left to round"),
        (lambda: cache_quantize(None, ordered=True), "keys=None rounds none"),
        (lambda: cache_quantize("int8_tensor"), "int8_tensor has a scale that several tokens share"),
        (lambda: cache_quantize("int8", "nvfp4"), "nvfp4 has a scale that several tokens share"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sorted_keys_share_blocks(tmp_path):
    """Every other channel of the keys is 100 times as large: sorted, no block of four holds both kinds."""
    plain = Decoder(ARCH)
    params = plain.init(jax.random.key(0))
    attn = params["layers"]["0"]["attn"]
    large = jnp.where(jnp.arange(16) % 2 == 0, 1.0, 0.01)[None, :]
    attn["k"], attn["q"] = attn["k"] * large, attn["q"] / jnp.tile(large, 2)
    x = random(3, 1, 5, 2, 8) * large.reshape(2, 8)[None, None]

    def rounded(model, params, ordered):
        program, _ = qjax.run(
            sorted_keys("int4_g4", ordered=ordered), model, params, [jnp.zeros((1, 2), jnp.int32)],
            checkpoint=str(tmp_path / f"{ordered} {model.scan}"),
        )  # fmt: skip
        ((site, tap),) = program.taps.items()
        return site, tap.apply(x)

    def moved(y):
        return jnp.mean(jnp.abs(y - x)[..., 1::2])

    site, y = rounded(plain, params, ordered=True)
    assert site == "layers/0/attn/key" and moved(y) < 0.1 * moved(rounded(plain, params, ordered=False)[1])
    order = jnp.argsort(-jnp.linalg.norm(attn["k"], axis=0).reshape(2, 8), axis=-1)
    alone = qjax.fake_quantize(x[0, 4, 1][order[1]], "int4_g4", axis=-1)
    np.testing.assert_array_equal(y[0, 4, 1][order[1]], alone)
    stacked = Decoder(ARCH, scan=True)
    with pytest.raises(ValueError, match="holds several layers"):
        rounded(stacked, stacked.init(jax.random.key(0)), ordered=True)
