"""GGUF files we write, run by llama.cpp itself: its logits, its tokens, and SmolLM2's perplexity in ggml's blocks.

The library is the one inside the package xllamacpp (build 11549); the declarations of its C interface are those that
the package llama-cpp-py-sync made from the headers of build 11548.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import pydoc_data.topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import qjax
from qjax.models import Decoder, Tokenizer, load
from qjax.models.decoder import nest
from qjax.models.gguf_families import KINDS, family_of, outer_scale
from qjax.operators import act_quantized
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests.models.gguf_archs import ARCHS, LLAMA, params_of
from tests.models.test_sentencepiece import TEXTS, TOKENS, gemma, llama, start

pytestmark = pytest.mark.oracle
if importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llama_cpp_py_sync") is None:
    pytest.skip("xllamacpp or llama-cpp-py-sync is not installed", allow_module_level=True)

VOCAB, LENGTH = 50, 48
CASES = {
    **ARCHS,
    "llama, biases and divisors": dataclasses.replace(
        LLAMA,
        tied=False,
        qkv_bias=True,
        o_bias=True,
        ffn_bias=True,
        rope_factors=(1.0,) * 4 + (8.0,) * 4,
    ),
    "qwen3, linear rope": dataclasses.replace(LLAMA, qk_norm="head", rope_factors=(4.0,) * 8),
    "gemma2, 46 layers": dataclasses.replace(ARCHS["gemma2"], layers=46, query_scale=0.25),
    "gemma3, other windows": dataclasses.replace(
        ARCHS["gemma3"], windows=(24, 24, 0, 24, 24, 0, 24), window_theta=50.0, logit_cap=9.0
    ),
    "phi3, plain rope": dataclasses.replace(LLAMA, tied=False, rotary=8),
}


@pytest.fixture(scope="module")
def library():
    import xllamacpp
    from llama_cpp_py_sync._cffi_bindings import get_ffi

    (shared,) = pathlib.Path(xllamacpp.__path__[0]).glob("xllamacpp*.so")
    loaded = get_ffi().dlopen(str(shared))
    loaded.llama_backend_init()
    return get_ffi(), loaded


@pytest.fixture
def opened(library):
    """A function that opens a file; what it opened is closed in the end."""
    ffi, loaded = library
    models: list[Any] = []

    def open_file(path):
        settings = loaded.llama_model_default_params()
        settings.n_gpu_layers = 0
        models.append(loaded.llama_model_load_from_file(str(path).encode(), settings))
        assert models[-1] != ffi.NULL, "llama.cpp does not take the file"
        return models[-1]

    yield open_file
    for model in models:
        loaded.llama_model_free(model)


def logits(library, model, tokens):
    """float32 [tokens, vocab], keys and values in float32."""
    ffi, loaded = library
    settings = loaded.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.type_k = settings.type_v = 0
    settings.n_threads = settings.n_threads_batch = 2
    settings.flash_attn_type = 0
    context = loaded.llama_init_from_model(model, settings)
    batch = loaded.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    assert loaded.llama_decode(context, batch) == 0
    size = 4 * loaded.llama_vocab_n_tokens(loaded.llama_model_get_vocab(model))
    rows = [bytes(ffi.buffer(loaded.llama_get_logits_ith(context, i), size)) for i in range(len(tokens))]
    loaded.llama_batch_free(batch)
    loaded.llama_free(context)
    return np.stack([np.frombuffer(row, np.float32) for row in rows])


def relative(ours, theirs):
    return np.max(np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1))


def drawn(arch):
    """Kernels that keep the stream's size; norms behind attention and FFN that leave 46 layers tame."""
    tame = 0.1 if arch.layers > 40 else 1.0
    return {
        path: np.float32(0.2 if w.ndim > 1 else tame if "post" in path else 1.0) * (w if w.ndim > 1 else 1.0 + 0.5 * w)
        for path, w in params_of(arch).items()
    }


# GELU is a table of float16 there.
def tolerance(arch):
    return 5e-3 if arch.activation == "gelu_tanh" else 1e-4


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_our_logits(tmp_path, library, opened, case):
    arch = dataclasses.replace(CASES[case], vocab=VOCAB)
    assert family_of(arch) == case.partition(",")[0]
    params, tokens = nest(drawn(arch)), np.random.default_rng(1).integers(0, VOCAB, LENGTH)
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), params, to="gguf")
    theirs = logits(library, opened(tmp_path / "m.gguf"), tokens)
    ours = np.asarray(Decoder(arch)(params, jnp.asarray(tokens)[None]))[0]
    assert relative(ours, theirs) <= tolerance(arch)
    assert np.std(theirs) > 0.1, "the logits say nothing"


@pytest.mark.parametrize("family", [*ARCHS, "qwen3"])
def test_llama_cpp_applies_the_tensor_scales_of_nvfp4(tmp_path, library, opened, family):
    """Wherever a file has a place for one: 0.002 for all, where leaving them out would change every logit."""
    arch = dataclasses.replace(CASES["qwen3, linear rope"] if family == "qwen3" else ARCHS[family], vocab=VOCAB, ffn=64)
    if arch.experts is not None:
        arch = dataclasses.replace(arch, experts=dataclasses.replace(arch.experts, ffn=64))
    leaves = {path: jnp.asarray(w) for path, w in drawn(arch).items()}
    for path, w in leaves.items():
        if w.ndim > 1 and outer_scale(KINDS[family], path) is not None:
            q = qjax.quantize(w, "nvfp4", batch_axes=w.ndim - 2)
            inner = q.scales[0]
            outer = jnp.full_like(inner.scales[0], 0.002)
            leaves[path] = dataclasses.replace(q, scales=(dataclasses.replace(inner, scales=(outer,)),))
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(leaves), to="gguf")
    tokens = np.random.default_rng(1).integers(0, VOCAB, LENGTH)
    theirs = logits(library, opened(tmp_path / "m.gguf"), tokens)
    values = {path: qjax.dense(leaf) for path, leaf in leaves.items()}
    ours = np.asarray(Decoder(arch)(nest(values), jnp.asarray(tokens)[None]))[0]
    errors = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    print(f"\n{family}: relative error {np.median(errors):.1e} in the median, with inputs in Q8_0 there")
    assert np.median(errors) < 0.1


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "router_aux_loss_coef": 0.0}
GEMMA = {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.5, 6.0, 9.0]}
FOLDERS = {
    "mixtral": ("Mixtral", {"num_local_experts": 5, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "phi3": (
        "Phi3",
        {"rope_parameters": {**LONGROPE, "rope_theta": 5000.0}, "original_max_position_embeddings": 16},
    ),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
    ),
}


@pytest.mark.parametrize("case", FOLDERS.values(), ids=FOLDERS)
def test_a_model_of_transformers_runs_in_llama_cpp(tmp_path, library, opened, case):
    """A folder it saved, read and written by us: llama.cpp gives the logits of transformers."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    import torch

    family, changes = case
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes}, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.3 * torch.randn_like(w))
    model.save_pretrained(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    decoder, params, _ = load(tmp_path)
    qjax.io.export(tmp_path / "m.gguf", decoder, params, to="gguf")
    tokens = np.random.default_rng(0).integers(0, VOCAB, LENGTH)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert relative(logits(library, opened(tmp_path / "m.gguf"), tokens), expected) <= tolerance(decoder.arch)


@pytest.mark.parametrize("kind", ["llama", "llama, swallowing", "gemma"])
def test_llama_cpp_cuts_text_as_we_do(tmp_path, library, opened, kind):
    backend = start(gemma() if kind == "gemma" else llama("swallowing" in kind))
    tokenizer = Tokenizer(backend, bos=1, eos=2)
    arch = dataclasses.replace(LLAMA, vocab=len(TOKENS) + 1)
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(params_of(arch)), to="gguf", tokenizer=tokenizer)
    ffi, loaded = library
    words = loaded.llama_model_get_vocab(opened(tmp_path / "m.gguf"))
    random = np.random.default_rng(0)
    texts = TEXTS + ["".join(random.choice(["a", "b", "c", "d", "e", " ", "é", "🙂", "<user>"], 9)) for _ in range(200)]
    for text in texts:
        data, found = text.encode(), ffi.new("int32_t[256]")
        count = loaded.llama_tokenize(words, data, len(data), found, 256, True, True)
        assert list(found[0:count]) == tokenizer.encode(text).tolist(), text


def perplexity(rows, tokens):
    """Of every token but the first."""
    scores = jax.nn.log_softmax(jnp.asarray(rows[:-1]), axis=-1)
    return float(jnp.exp(-jnp.mean(scores[jnp.arange(len(tokens) - 1), tokens[1:]])))


def test_perplexity_in_llama_cpp_is_ours(tmp_path, library, opened):
    """SmolLM2 with kernels of four types, within 1 %, inputs rounded to Q8_0 as llama.cpp does for them."""
    model, params, words = load()
    kinds = {"attn": "q8_0", "ffn/gate": "q4_0", "ffn/up": "mxfp4", "ffn/down": "q5_0"}
    leaves = leaves_with_paths(params)
    quantized = {
        path: qjax.quantize(leaves[path], next(kind for part, kind in kinds.items() if f"/{part}" in path))
        for path in leaves
        if path.startswith("layers/") and leaves[path].ndim == 2
    }
    qjax.io.export(tmp_path / "m.gguf", model, replace_leaves(params, quantized), to="gguf", tokenizer=words)
    rounded = {path: act_quantized(q, "q8_0") for path, q in quantized.items()}
    tokens = words.encode(pydoc_data.topics.topics["typesseq"])[:256]
    theirs = perplexity(logits(library, opened(tmp_path / "m.gguf"), tokens), tokens)
    ours = qjax.quantized(model)(replace_leaves(params, rounded), jnp.asarray(tokens)[None])[0]
    print(f"\nperplexity {theirs:.4f} in llama.cpp, {perplexity(ours, tokens):.4f} here")
    assert len(tokens) == 256 and abs(theirs / perplexity(ours, tokens) - 1) <= 0.01
