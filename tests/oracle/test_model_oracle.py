"""The decoder against transformers' Llama, weights read from the files by code of this test alone."""

from __future__ import annotations

import itertools
import json
import math
import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.models import find, load

pytestmark = pytest.mark.oracle

WINDOWS, LENGTH = 4, 256


def llama_from_gguf(path):
    """LlamaForCausalLM filled from the GGUF file with the gguf package, llama.cpp's row order undone."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    to_hf = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in GGUFReader(path).tensors:
        w = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if tensor.name == "token_embd.weight":
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = torch.from_numpy(w)
            continue
        if tensor.name == "output_norm.weight":
            state["model.norm.weight"] = torch.from_numpy(w)
            continue
        _, layer, name, _ = tensor.name.split(".")
        if name in ("attn_q", "attn_k"):
            # A head's rows are stored x0 x32 x1 x33 ...; Llama's order is x0 x1 ... x31 x32 ...
            order = [h * 64 + 2 * (i % 32) + i // 32 for h in range(w.shape[0] // 64) for i in range(64)]
            w = w[order]
        state[f"model.layers.{layer}.{to_hf[name]}.weight"] = torch.from_numpy(w)
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64))).logits.numpy()


def perplexity(logits, tokens):
    """Mean loss of every next token, exponentiated; float64."""
    z = np.asarray(logits[:, :-1], np.float64)
    z -= z.max(-1, keepdims=True)
    loss = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, tokens[:, 1:, None], -1)[..., 0]
    return math.exp(loss.mean())


@pytest.fixture(autouse=True)
def transformers():
    """Version 5 keeps theta and scaling of RoPE in one place; before it these configurations mean something else."""
    return pytest.importorskip("transformers", minversion="5.0")


@pytest.fixture(scope="module")
def smollm2():
    return load()


@pytest.fixture(scope="module")
def reference():
    return llama_from_gguf(find())


def test_smollm2_logits_and_perplexity(smollm2, reference):
    model, params, tokenizer = smollm2
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    tokens = tokenizer.encode(text[:20000])[: WINDOWS * LENGTH].reshape(WINDOWS, LENGTH)
    theirs = torch_logits(reference, tokens)
    ours = np.asarray(model(params, jnp.asarray(tokens)))
    error = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    ratio = perplexity(ours, tokens) / perplexity(theirs, tokens) - 1
    print(f"\nlogits: relative error at most {error.max():.1e} per token")
    print(f"perplexity {perplexity(ours, tokens):.6f} on {WINDOWS} x {LENGTH}, relative difference {ratio:.1e}")
    assert error.max() < 1e-3
    assert abs(ratio) < 1e-3


def test_smollm2_cached_decoding(smollm2, reference):
    """Prefill, then one token at a time, against their forward pass over all of it."""
    model, params, tokenizer = smollm2
    tokens = tokenizer.encode("Winter came early that year, and with it the first snow in 1899.")[None, :14]
    theirs = torch_logits(reference, tokens)
    positions = jnp.arange(14, dtype=jnp.int32)[None]
    decode = jax.jit(model.decode)
    logits, state = decode(params, model.init_cache(1, 16), tokens[:, :10], positions[:, :10])
    pieces = [logits]
    for t in range(10, 14):
        logits, state = decode(params, state, tokens[:, t : t + 1], positions[:, t : t + 1])
        pieces.append(logits)
    ours = np.concatenate(pieces, axis=1)
    error = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert error.max() < 1e-3


def test_smollm2_tokenizer(smollm2):
    """Against byte-pair encoding written out here: llama.cpp's two patterns for smollm, then merges by rank."""
    import regex
    from gguf import GGUFReader

    fields = GGUFReader(find()).fields
    ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    rank = {tuple(m.split(" ")): i for i, m in enumerate(fields["tokenizer.ggml.merges"].contents())}
    # GPT-2's printable stand-ins for bytes: those that print stay, the others follow from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    stand_in = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    word = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def encode(text):
        for piece in filter(None, regex.split(r"(\p{N})", text)):
            for match in word.findall(piece):
                parts = [stand_in[b] for b in match.encode()]
                while len(parts) > 1:
                    pairs = list(itertools.pairwise(parts))
                    best = min(pairs, key=lambda pair: rank.get(pair, math.inf))
                    if best not in rank:
                        break
                    i = pairs.index(best)
                    parts[i : i + 2] = [parts[i] + parts[i + 1]]
                yield from (ids[part] for part in parts)

    text = (
        pydoc_data.topics.topics["integers"]
        + pydoc_data.topics.topics["strings"]
        + "naïve 東京 x²³ ½ 🙂 don't\t\n  1899 "
    )
    assert smollm2[2].encode(text).tolist() == list(encode(text))


CONFIGS = {
    "untied": {"tie_word_embeddings": False},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one key head": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 6},
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_folders_that_transformers_writes(tmp_path, changes):
    """Random models with every parameter away from its starting value, saved by transformers and read by us."""
    import tokenizers
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes}, attn_implementation="eager")).eval()
    with torch.no_grad():
        for w in model.parameters():
            w.add_(0.2 * torch.randn_like(w))
    model.save_pretrained(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    ours, params, _ = load(tmp_path)
    assert ours.arch.tied == json.loads((tmp_path / "config.json").read_text()).get("tie_word_embeddings", False)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 40))
    theirs = torch_logits(model, tokens)
    error = np.linalg.norm(ours(params, jnp.asarray(tokens)) - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert error.max() < 1e-4
