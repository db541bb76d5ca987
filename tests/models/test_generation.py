from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import quantization
from qjax.models import Architecture, Decoder, stack_layers
from qjax.models.decoder import nest
from qjax.models.generation import _generate, filtered, generate
from qjax.trace.paths import leaves_with_paths, replace_leaves

ARCH = Architecture(vocab=16, width=8, layers=2, heads=2, kv_heads=1, head_dim=4, ffn=12)
MODEL = Decoder(ARCH)
random = np.random.default_rng(0)
# Large weights: a model that is sure of itself, so that greedy choices do not hang on rounding.
PARAMS = nest({path: random.normal(0, 1, shape).astype(np.float32) for path, shape in ARCH.shapes.items()})
PROMPTS = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])


def greedy_by_hand(tokens, steps):
    """No cache: the whole forward pass for every token."""
    for _ in range(steps):
        new = MODEL(PARAMS, tokens)[:, -1].argmax(-1, keepdims=True).astype(tokens.dtype)
        tokens = jnp.concatenate([tokens, new], axis=1)
    return tokens[:, -steps:]


@pytest.fixture(scope="module")
def expected():
    return greedy_by_hand(PROMPTS, 5)


def test_greedy_is_repeated_forward(expected):
    np.testing.assert_array_equal(generate(MODEL, PARAMS, PROMPTS, 5), expected)


def test_one_prompt_alone_generates_the_same(expected):
    padded = jnp.concatenate([jnp.zeros((1, 3), jnp.int32), PROMPTS[:1]], axis=1)
    np.testing.assert_array_equal(generate(MODEL, PARAMS, PROMPTS[:1], 5), expected[:1])
    np.testing.assert_array_equal(generate(MODEL, PARAMS, padded, 5, lengths=jnp.array([4])), expected[:1])


def test_one_prompt_alone_copies_no_cache_in_the_loop():
    arch = dataclasses.replace(ARCH, heads=4, kv_heads=2)
    model, steps, inputs = Decoder(arch), 9, (PROMPTS[:1].astype(jnp.int32), jnp.array([4], jnp.int32))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    program = _generate.lower(model, True, None, steps, None, params, *inputs, jax.random.key(0), jnp.float32(1))
    held = f"{arch.kv_heads},{PROMPTS.shape[1] + steps},{arch.head_dim}]"
    copies = re.findall(rf"f32\[(?:1,)?{re.escape(held)}\S* copy\(", program.compile().as_text())
    assert len(copies) <= 2 * arch.layers  # one each in front of the loop


def test_scan_generates_the_same(expected):
    out = generate(Decoder(ARCH, scan=True), stack_layers(PARAMS), PROMPTS, 5)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("scan", [False, True])
def test_quantized_parameters_generate_what_their_values_do(scan):
    params = stack_layers(PARAMS) if scan else PARAMS
    matrices = {
        path: quantization.quantize(jnp.asarray(w), "int8", axis=-2, batch_axes=w.ndim - 2)
        for path, w in leaves_with_paths(params).items()
        if path.startswith("layers/") and not path.endswith("scale")
    }
    coded = replace_leaves(params, matrices)
    dense = replace_leaves(params, {path: quantization.dequantize(q) for path, q in matrices.items()})
    model = Decoder(ARCH, scan=scan)
    np.testing.assert_array_equal(generate(model, coded, PROMPTS, 5), generate(model, dense, PROMPTS, 5))


def test_left_padded_prompts_generate_the_same(expected):
    padded = jnp.concatenate([jnp.zeros((2, 3), jnp.int32), PROMPTS], axis=1)
    out = generate(MODEL, PARAMS, padded, 5, lengths=jnp.array([4, 4]))
    np.testing.assert_array_equal(out, expected)


def test_top_1_at_any_temperature_is_greedy(expected):
    out = generate(MODEL, PARAMS, PROMPTS, 5, jax.random.key(0), temperature=3.0, top_k=1)
    np.testing.assert_array_equal(out, expected)


def test_a_row_that_stops_stays_stopped(expected):
    stop = int(expected[0, 1])
    out = generate(MODEL, PARAMS, PROMPTS, 5, stop=stop)
    for row, free in zip(np.asarray(out), np.asarray(expected), strict=True):
        ends = np.flatnonzero(free == stop)
        end = ends[0] if len(ends) else 5
        np.testing.assert_array_equal(row[:end], free[:end])
        assert (row[end:] == stop).all()


def test_samples_repeat_with_their_key_and_follow_the_distribution():
    """512 rows of one prompt: the same key the same rows, and frequencies near the softmax at that temperature."""
    prompts = jnp.broadcast_to(PROMPTS[:1], (512, 4))
    out = generate(MODEL, PARAMS, prompts, 1, jax.random.key(7), temperature=4.0)
    np.testing.assert_array_equal(out, generate(MODEL, PARAMS, prompts, 1, jax.random.key(7), temperature=4.0))
    p = np.asarray(jax.nn.softmax(MODEL(PARAMS, PROMPTS[:1])[0, -1] / 4.0))
    frequency = np.bincount(np.asarray(out)[:, 0], minlength=16) / 512
    assert np.abs(frequency - p).max() < 5 * np.sqrt(0.25 / 512)


def test_a_new_temperature_or_key_compiles_nothing():
    generate(MODEL, PARAMS, PROMPTS, 2, jax.random.key(0), temperature=0.5, top_k=4)
    before = _generate._cache_size()
    generate(MODEL, PARAMS, PROMPTS, 2, jax.random.key(1), temperature=0.7, top_k=4)
    assert _generate._cache_size() == before


def test_filtered_keeps_all_without_top_k():
    x = jnp.arange(4.0)
    np.testing.assert_array_equal(filtered(x, None), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"tokens": jnp.zeros((1, 0), jnp.int32)}, "at least one token"),
        ({"tokens": jnp.zeros(3, jnp.int32)}, "batch, tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1.0}, "key"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 17}, "top_k"),
        ({"lengths": jnp.zeros(3, jnp.int32)}, "lengths"),
    ],
)
def test_bad_requests_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, **{"tokens": PROMPTS, "steps": 2, **change})
