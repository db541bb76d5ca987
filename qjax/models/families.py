"""The decoder families of Hugging Face as data: what their tensors and settings are called, and what they mean here.

Read from the configurations and models of transformers 5.23, `models/<model_type>/`. A setting that is neither in
`KEYS`, nor in the family's own `settings`, nor known to leave the function alone is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OUTER = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"}


@dataclass(frozen=True)
class Fused:
    """One stored matrix for several of ours, side by side along its outputs, or within each head if `by_head`."""

    parts: tuple[str, ...]
    by_head: bool = False


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
        layers: what the names of a layer's tensors begin with, before its number.
        modules: module below a layer -> our kernel or norm below layers/<i>.
        outer: modules outside the layers, in the same way.
        names: our (Llama's) name of a setting -> the family's, where they differ.
        settings: settings that only some families have, with the values that hold where config.json is silent.
        only: settings that have to have this value.
        fields: what the family means by itself, as fields of `Architecture`.
        inputs_first: matrices are stored [in, out] (GPT-2's Conv1D).
        gain_offset: what is added to a stored norm's gain.
        skipped_positions: rows of the table of positions before that of position 0.
    """

    modules: Mapping[str, str | Fused]
    layers: str = "model.layers."
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    names: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    inputs_first: bool = False
    gain_offset: float = 0.0
    skipped_positions: int = 0

    def name(self, setting: str) -> str:
        """What the family calls a setting."""
        return self.names.get(setting, setting)


# Settings that every family may have and the reader knows.
KEYS = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "rms_norm_eps", "hidden_act", "max_position_embeddings", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "quantization_config", "model_type"),
}
# What other readers use, and what training, generation and housekeeping left there: no part of the function.
INERT = {
    *("architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("sep_token_id", "decoder_start_token_id", "unsloth_version", "unsloth_fixed"),
    *("dtype", "torch_dtype", "transformers_version", "use_cache", "cache_implementation", "return_dict", "is_decoder"),
    *("initializer_range", "init_std", "initializer_factor", "attention_dropout", "hidden_dropout", "dropout"),
    *("activation_dropout", "classifier_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "layerdrop"),
    *("gradient_checkpointing", "output_attentions", "output_hidden_states", "task_specific_params", "problem_type"),
    *("id2label", "label2id", "num_labels", "finetuning_task", "chunk_size_feed_forward", "tokenizer_class", "prefix"),
    *("pretraining_tp", "is_llama_config", "rope_interleaved", "transformers.js_config"),
    *("_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "n_ctx"),
    *("_sliding_window_pattern", "reorder_and_upcast_attn", "router_aux_loss_coef", "router_jitter_noise"),
    *("output_router_logits", "use_flash_attention", "model_max_length"),
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
}  # fmt: skip

ATTENTION = {f"self_attn.{name}_proj": f"attn/{name}" for name in "qkvo"}
GATED = {f"mlp.{name}_proj": f"ffn/{name}" for name in ("gate", "up", "down")}
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
QK_NORMS = {f"self_attn.{name}_norm": f"attn/{name}_norm" for name in "qk"}
LLAMA = {**PRE_NORMS, **ATTENTION, **GATED}
SWITCHED = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(LLAMA, settings={"attention_bias": False, "mlp_bias": False}),
    "mistral": Family(LLAMA, settings={"sliding_window": 4096}),
    "qwen2": Family(LLAMA, settings=SWITCHED, fields={"qkv_bias": True}),
    "qwen3": Family(
        {**LLAMA, **QK_NORMS},
        settings={"head_dim": 128, "attention_bias": False, **SWITCHED},
        fields={"qk_norm": "head"},
    ),
    "phi3": Family(
        {
            **PRE_NORMS,
            "self_attn.qkv_proj": Fused(("attn/q", "attn/k", "attn/v")),
            "self_attn.o_proj": "attn/o",
            "mlp.gate_up_proj": Fused(("ffn/gate", "ffn/up")),
            "mlp.down_proj": "ffn/down",
        },
        settings={
            "sliding_window": None,
            "partial_rotary_factor": 1.0,
            # Of its RoPE with long and short factors alone, which is refused.
            "original_max_position_embeddings": 4096,
        },
    ),
    "olmo2": Family(
        {
            **ATTENTION,
            **GATED,
            **QK_NORMS,
            "post_attention_layernorm": "attn_post_norm",
            "post_feedforward_layernorm": "ffn_post_norm",
        },
        settings={"attention_bias": False},
        fields={"placement": "post", "qk_norm": "width"},
    ),
}
