"""Every decoder family against transformers: small random models it saved, read by us; forward and token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.models import load

pytestmark = pytest.mark.oracle

VOCAB, LENGTH, PREFILL = 50, 24, 7
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
# transformers goes by each call's last position: prefill and every step have to be on one side of the original context.
LONG = {"max_position_embeddings": 64, "original_max_position_embeddings": PREFILL - 1}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.5, 6.0, 9.0]}
HALF = {"attention_factor": 1.3, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5], "long_factor": [4.0, 9.0]}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "router_aux_loss_coef": 0.0}
# Windows shorter than the text, so that what has left them shows.
CASES = {
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 10}),
    "mistral, no window": ("Mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, upper layers with a window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 6, "attention_bias": True}),
    "qwen3, linear rope": ("Qwen3", {"head_dim": 8, "rope_parameters": LINEAR}),
    "phi3": ("Phi3", {}),
    "phi3, window and partial rope": (
        "Phi3",
        {
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
        },
    ),
    "phi3, longrope in a long context": ("Phi3", {"rope_parameters": {**LONGROPE, "rope_theta": 5000.0}, **LONG}),
    "phi3, longrope in a short context": (
        "Phi3",
        {
            "rope_parameters": {**LONGROPE, **HALF},
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 64,
        },
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "sliding_window": 6}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 20, "mlp_only_layers": [1]}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 6, "norm_topk_prob": True, "decoder_sparse_step": 2}),
    "olmo2": ("Olmo2", {}),
    "gemma2": ("Gemma2", {"head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 7, "num_hidden_layers": 3}),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "pythia": ("GPTNeoX", {}),
    "gpt_neox, in a row": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "gpt2": ("GPT2", {}),
    "opt": ("OPT", {"ffn_dim": 48}),
    "olmo2, biases": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
}


@pytest.fixture(autouse=True)
def transformers():
    """Version 5 keeps theta and scaling of RoPE in one place; before it these configurations mean something else."""
    return pytest.importorskip("transformers", minversion="5.0")


def relative(ours, theirs):
    return np.max(np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_of_every_family(tmp_path, transformers, case):
    """Parameters away from where they start, norms and biases included; padding is another test's matter."""
    import tokenizers
    import torch

    family, changes = case
    # Older families have other names for some sizes, and would keep ours beside them.
    foreign = {
        "GPT2": ("intermediate_size", "num_key_value_heads"),
        "OPT": ("intermediate_size", "num_key_value_heads"),
    }
    foreign["GPTNeoX"] = ("num_key_value_heads",)
    sizes = {name: value for name, value in SIZES.items() if name not in foreign.get(family, ())}
    config = getattr(transformers, f"{family}Config")(**{**sizes, **changes}, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = next(
        getattr(transformers, name)
        for name in (f"{family.removesuffix('Text')}ForCausalLM", f"{family}LMHeadModel")
        if hasattr(transformers, name)
    )(config).eval()
    with torch.no_grad():
        for w in theirs.parameters():
            w.add_(0.3 * torch.randn_like(w))
    theirs.save_pretrained(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    model, params, _ = load(tmp_path)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
        cached = theirs(torch.from_numpy(tokens[:, :PREFILL]), use_cache=True)
        pieces = [cached.logits.numpy()]
        for t in range(PREFILL, LENGTH):
            step = torch.from_numpy(tokens[:, t : t + 1])
            cached = theirs(step, past_key_values=cached.past_key_values, use_cache=True)
            pieces.append(cached.logits.numpy())
    assert relative(np.asarray(model(params, jnp.asarray(tokens))), expected) <= 1e-4
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32), tokens.shape)
    decode, state, ours = jax.jit(model.decode), model.init_cache(2, LENGTH), []
    for part in (slice(0, PREFILL), *(slice(t, t + 1) for t in range(PREFILL, LENGTH))):
        logits, state = decode(params, state, tokens[:, part], positions[:, part])
        ours.append(logits)
    assert relative(np.concatenate(ours, axis=1), np.concatenate(pieces, axis=1)) <= 1e-4
    assert np.std(expected) > 0.1, "the logits say nothing"
