"""What sets the decoder families apart: windows, decoding as one pass would, and settings that are refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.kv import QuantizedCache
from qjax.models import Architecture, Decoder, stack_layers
from qjax.models import decoder as module
from qjax.models.configuration import read_architecture
from qjax.models.decoder import nest

LLAMA = Architecture(vocab=32, width=12, layers=4, heads=4, kv_heads=2, head_dim=4, ffn=20, theta=1000.0)
ARCHS = {
    "windows, caps, norms before and behind": dataclasses.replace(
        LLAMA,
        windows=(3, 0),
        window_theta=100.0,
        placement="both",
        qk_norm="head",
        activation="gelu_tanh",
        embed_scale=12**0.5,
        query_scale=0.3,
        score_cap=2.0,
        logit_cap=3.0,
    ),
    "norms behind": dataclasses.replace(LLAMA, placement="post", qk_norm="width", windows=(2,)),
    "parallel, means, partial rope": dataclasses.replace(
        LLAMA, norm="layer", parallel=True, gated=False, activation="gelu", rotary=2, qkv_bias=True, ffn_bias=True
    ),
    "frequencies by length": dataclasses.replace(
        LLAMA, rope_factors=(1.0, 1.5), long_factors=(2.0, 9.0), original_context=7, rope_scale=1.2
    ),
    "learned positions": dataclasses.replace(
        LLAMA, norm="layer", gated=False, activation="relu", rotary=0, learned_positions=True, context=9
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8))


def params_of(arch):
    random = np.random.default_rng(0)
    return nest({path: random.normal(0, 0.5, shape).astype(np.float32) for path, shape in arch.shapes.items()})


@pytest.mark.parametrize(("name", "scan"), [*((name, False) for name in ARCHS), (next(iter(ARCHS)), True)])
def test_decoding_and_scanning_are_the_forward_pass(name, scan):
    """Prefill, then single tokens, past every window; with padding in front."""
    arch = ARCHS[name]
    model, params = Decoder(arch, scan=scan), params_of(arch)
    expected = Decoder(arch)(params, TOKENS)
    assert float(jnp.std(expected)) > 0.1
    params = stack_layers(params) if scan else params
    np.testing.assert_allclose(model(params, TOKENS), expected, rtol=1e-4, atol=1e-4)
    padded, at = np.pad(TOKENS, ((0, 0), (1, 0))), np.arange(-1, 8, dtype=np.int32)
    state, got = model.init_cache(2, 8), []
    for part in (slice(0, 6), slice(6, 7), slice(7, 8), slice(8, 9)):
        logits, state = model.decode(params, state, padded[:, part], np.broadcast_to(at[part], (2, len(at[part]))))
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, axis=1)[:, 1:], expected, rtol=1e-4, atol=1e-4)


def test_the_length_of_a_context_chooses_its_frequencies():
    """The tokens of a forward pass, the capacity of a cache; one length for all keys of a text."""
    arch = ARCHS["frequencies by length"]
    params, at = params_of(arch), POSITIONS[:, :7]
    plain = {"long_factors": None, "original_context": None}
    short, long = (
        Decoder(dataclasses.replace(arch, **plain, rope_factors=factors))
        for factors in (arch.rope_factors, arch.long_factors)
    )
    np.testing.assert_array_equal(Decoder(arch)(params, TOKENS[:, :7]), short(params, TOKENS[:, :7]))
    np.testing.assert_array_equal(Decoder(arch)(params, TOKENS), long(params, TOKENS))
    for scan in (False, True):
        model, own = Decoder(arch, scan=scan), stack_layers(params) if scan else params
        for capacity, same in ((7, short), (8, long)):
            got = model.decode(own, model.init_cache(2, capacity), TOKENS[:, :7], at)[0]
            np.testing.assert_allclose(got, same(params, TOKENS[:, :7]), rtol=1e-4, atol=1e-4)
    moved = np.abs(short(params, TOKENS) - long(params, TOKENS))
    assert moved.max() > 0.05


def test_windows_and_their_bases_share_one_compiled_block():
    arch = dataclasses.replace(ARCHS["windows, caps, norms before and behind"], eps=2e-5)
    before = module.block._cache_size()
    Decoder(arch)(params_of(arch), TOKENS)
    assert module.block._cache_size() == before + 1


def test_a_window_is_the_latest_tokens():
    """One layer: what has left the window cannot change a logit, the oldest token within it does."""
    arch = dataclasses.replace(LLAMA, layers=1, windows=(3,))
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 32
    moved = np.abs(Decoder(arch)(params_of(arch), TOKENS) - Decoder(arch)(params_of(arch), changed)).max(axis=(0, 2))
    assert (moved > 1e-4).tolist() == [False, False, True, True, True, False, False, False]


def test_a_quantized_cache_keeps_the_window():
    arch = dataclasses.replace(LLAMA, layers=1, windows=(3,))
    model = Decoder(arch, key_cache=QuantizedCache("int8"), value_cache=QuantizedCache("int8"))
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 32

    @jax.jit
    def run(tokens):
        return model.decode(params_of(arch), model.init_cache(2, 8), tokens, POSITIONS)[0]

    moved = np.abs(run(TOKENS) - run(changed)).max(axis=(0, 2))
    assert (moved > 0).tolist() == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("windows, caps, norms before and behind", "score_cap"),
        ("norms behind", "windows"),
        ("learned positions", "learned_positions"),
    ],
)
def test_containers_refuse_what_no_family_that_is_written_has(tmp_path, name, variant):
    arch = ARCHS[name]
    params = params_of(arch)
    for to in ("compressed-tensors", "gguf"):
        with pytest.raises(ValueError, match=variant):
            qjax.io.export(tmp_path / to, Decoder(arch), params, to=to)
        assert not (tmp_path / to).exists()


LONGROPE = {"type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 8.0]}
SIZES = {
    "vocab_size": 32,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "rms_norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama", "sliding_window": 8}, "sliding_window is 8, a setting of 'llama'"),
        ({"model_type": "llama", "residual_multiplier": 0.2}, "residual_multiplier is 0.2"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"model_type": "qwen2", "rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1}}, "mscale is 1"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "opt", "ffn_dim": 16, "do_layer_norm_before": False}, "do_layer_norm_before is False"),
        ({"model_type": "opt", "ffn_dim": 16, "word_embed_proj_dim": 4}, "word_embed_proj_dim is 4"),
        ({"model_type": "llama", "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 2}}, "'longrope'"),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 2}}, "long_factor"),
        ({"model_type": "phi3", "rope_scaling": {**LONGROPE, "short_factor": [1.0]}}, "rope_factors has 1 entries"),
        ({"model_type": "phi3", "rope_scaling": {**LONGROPE, "mscale": 2.0}}, "mscale is 2.0"),
        (
            {"model_type": "phi3", "rope_scaling": LONGROPE, "original_max_position_embeddings": 1},
            "original_max_position_embeddings is 1",
        ),
    ],
)
def test_settings_that_change_the_function_are_refused(settings, message):
    sizes = {
        k: v
        for k, v in SIZES.items()
        if settings["model_type"] != "opt" or k not in ("intermediate_size", "rms_norm_eps")
    }
    with pytest.raises(ValueError, match=message):
        read_architecture({**sizes, **settings})


def test_settings_become_data():
    def read(kind, **settings):
        return read_architecture({**SIZES, "model_type": kind, **settings})

    assert read("mistral").windows == (4096,)
    assert read("mistral", sliding_window=None).beyond_llama == {}
    assert read("qwen2").qkv_bias and not read("qwen2").o_bias and read("qwen2").windows == ()
    assert read("qwen2", use_sliding_window=True, max_window_layers=1).windows == (0, 4096)
    assert read("qwen3").head_dim == 128 and read("qwen3").qk_norm == "head"
    assert read("olmo2").placement == "post"
    gemma = read("gemma2", num_hidden_layers=3)
    assert (gemma.windows, gemma.score_cap, gemma.logit_cap, gemma.query_scale) == ((4096, 0), 50.0, 30.0, 1 / 16)
    assert gemma.embed_scale == 8**0.5 and gemma.tied
    gemma = read("gemma3_text", num_hidden_layers=8, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert (gemma.windows, gemma.theta, gemma.window_theta) == ((4096,) * 5 + (0,), 1e6, 1e4)
    assert set(gemma.rope_factors) == {8.0}
    phi = read("phi3", rope_scaling=LONGROPE, max_position_embeddings=2**16, original_max_position_embeddings=2**8)
    assert (phi.rope_factors, phi.long_factors, phi.original_context) == ((1.0, 2.0), (1.0, 8.0), 2**8)
    assert phi.rope_scale == 2**0.5  # sqrt(1 + log(2^8) / log(2^8))
    assert read("phi3", rope_scaling=LONGROPE).rope_scale == 1.0
    half = {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.5}
    assert (read("phi3", rope_parameters=half).rotated, read("phi3", rope_parameters=half).theta) == (2, 7.0)
