"""The families of Hugging Face as data: what their tensors and settings are called, and what they mean here.

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
class Entry:
    """One stored matrix that is an entry of a leaf of ours: of the expert with that number."""

    path: str
    number: int


@dataclass(frozen=True)
class Family:
    """One `model_type`.

    Attributes:
        layers: what the names of a layer's tensors begin with, before its number.
        modules: module below a layer -> our kernel or norm below layers/<i>; "*" stands for the number of an expert,
            whose tensor is one matrix of a leaf.
        outer: modules outside the layers, in the same way.
        names: our (Llama's) name of a setting -> the family's, where they differ.
        settings: settings that only some families have, with the values that hold where config.json is silent.
        only: settings that have to have this value.
        fields: what the family means by itself, as fields of `Architecture`.
        inputs_first: matrices are stored [in, out] (GPT-2's Conv1D).
        gain_offset: what is added to a stored norm's gain.
        skipped_positions: rows of the table of positions before that of position 0.
        scaled_embedding: embedded tokens are multiplied by sqrt(width).
        ffn_ratio: the FFN's channels for each of the stream, where config.json is silent.
        heads: for encoders, the class of a model in transformers -> `Encoding.head`; another class is refused.
        spare: what the names of a head's modules begin with; left out where the model's head has no such parameter.
        base: what the names of a checkpoint of the bare model, without a head, do not begin with.
        model: the class of transformers that a written config.json names; None where the family is only read, because
            it stores several matrices as one or other numbers than ours.
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
    scaled_embedding: bool = False
    ffn_ratio: int | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    spare: tuple[str, ...] = ()
    base: str = ""
    model: str | None = None

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
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "encoder_stride"),
    *(f"pooler_{name}" for name in ("fc_size", "num_attention_heads", "num_fc_layers", "size_per_head", "type")),
    *("output_router_logits", "use_flash_attention", "model_max_length"),
    *(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")),
}  # fmt: skip

ATTENTION = {f"self_attn.{name}_proj": f"attn/{name}" for name in "qkvo"}
GATED = {f"mlp.{name}_proj": f"ffn/{name}" for name in ("gate", "up", "down")}
PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
QK_NORMS = {f"self_attn.{name}_norm": f"attn/{name}_norm" for name in "qk"}
LLAMA = {**PRE_NORMS, **ATTENTION, **GATED}
GEMMA = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
    **ATTENTION,
    **GATED,
}
GEMMA_SETTINGS = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}
QWEN_EXPERTS = {
    "mlp.gate": "ffn/router",
    **{f"mlp.experts.*.{name}_proj": f"ffn/experts/{name}" for name in ("gate", "up", "down")},
}
QWEN_SHARED = {
    **{f"mlp.shared_expert.{name}_proj": f"ffn/shared/{name}" for name in ("gate", "up", "down")},
    "mlp.shared_expert_gate": "ffn/shared_gate",
}
ROUTED = {"decoder_sparse_step": 1, "mlp_only_layers": None, "norm_topk_prob": False, "num_local_experts": None}
LEARNED = {"norm": "layer", "gated": False, "rotary": 0, "learned_positions": True}
BOTH_WAYS = {**LEARNED, "qkv_bias": True, "o_bias": True, "ffn_bias": True}
SWITCHED = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(LLAMA, settings={"attention_bias": False, "mlp_bias": False}, model="LlamaForCausalLM"),
    "mistral": Family(LLAMA, settings={"sliding_window": 4096}, model="MistralForCausalLM"),
    "qwen2": Family(LLAMA, settings=SWITCHED, fields={"qkv_bias": True}, model="Qwen2ForCausalLM"),
    "qwen3": Family(
        {**LLAMA, **QK_NORMS},
        settings={"head_dim": 128, "attention_bias": False, **SWITCHED},
        fields={"qk_norm": "head"},
        model="Qwen3ForCausalLM",
    ),
    "mixtral": Family(
        {
            **PRE_NORMS,
            **ATTENTION,
            "block_sparse_moe.gate": "ffn/router",
            "block_sparse_moe.experts.*.w1": "ffn/experts/gate",
            "block_sparse_moe.experts.*.w3": "ffn/experts/up",
            "block_sparse_moe.experts.*.w2": "ffn/experts/down",
        },
        settings={
            "sliding_window": None,
            "rope_theta": 1000000.0,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        },
        names={"num_experts": "num_local_experts"},
        only={"norm_topk_prob": True},
        model="MixtralForCausalLM",
    ),
    "qwen2_moe": Family(
        {**LLAMA, **QWEN_EXPERTS, **QWEN_SHARED},
        settings={
            **SWITCHED,
            **ROUTED,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        only={"qkv_bias": True, "use_sliding_window": False},
        fields={"qkv_bias": True},
        model="Qwen2MoeForCausalLM",
    ),
    "qwen3_moe": Family(
        {**LLAMA, **QK_NORMS, **QWEN_EXPERTS},
        settings={
            "attention_bias": False,
            **SWITCHED,
            **ROUTED,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        only={"use_sliding_window": False},
        fields={"qk_norm": "head"},
        model="Qwen3MoeForCausalLM",
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
            "max_position_embeddings": 4096,
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
        model="Olmo2ForCausalLM",
    ),
    "gemma2": Family(
        {**GEMMA},
        settings={
            **GEMMA_SETTINGS,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        names={"hidden_act": "hidden_activation"},
        fields={"placement": "both"},
        gain_offset=1.0,
        scaled_embedding=True,
    ),
    "gemma3_text": Family(
        {**GEMMA, **QK_NORMS},
        settings={
            **GEMMA_SETTINGS,
            "sliding_window_pattern": 6,
            "final_logit_softcapping": None,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
        },
        names={"hidden_act": "hidden_activation"},
        fields={"placement": "both", "qk_norm": "head"},
        gain_offset=1.0,
        scaled_embedding=True,
    ),
    "gpt_neox": Family(
        {
            **PRE_NORMS,
            "attention.query_key_value": Fused(("attn/q", "attn/k", "attn/v"), by_head=True),
            "attention.dense": "attn/o",
            "mlp.dense_h_to_4h": "ffn/up",
            "mlp.dense_4h_to_h": "ffn/down",
        },
        layers="gpt_neox.layers.",
        outer={
            "gpt_neox.embed_in": "embed",
            "gpt_neox.final_layer_norm": "norm",
            "embed_out": "head",
            "lm_head": "head",
        },
        names={
            "rms_norm_eps": "layer_norm_eps",
            "rope_theta": "rotary_emb_base",
            "partial_rotary_factor": "rotary_pct",
        },
        settings={
            "attention_bias": True,
            "hidden_act": "gelu",
            "use_parallel_residual": True,
            "partial_rotary_factor": 0.25,
        },
        fields={"norm": "layer", "gated": False, "ffn_bias": True},
    ),
    "gpt2": Family(
        {
            "ln_1": "attn_norm",
            "ln_2": "ffn_norm",
            "attn.c_attn": Fused(("attn/q", "attn/k", "attn/v")),
            "attn.c_proj": "attn/o",
            "mlp.c_fc": "ffn/up",
            "mlp.c_proj": "ffn/down",
        },
        layers="transformer.h.",
        outer={
            "transformer.wte": "embed",
            "transformer.wpe": "positions",
            "transformer.ln_f": "norm",
            "lm_head": "head",
        },
        names={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
            "max_position_embeddings": "n_positions",
        },
        settings={"tie_word_embeddings": True, "hidden_act": "gelu_new"},
        only={"scale_attn_weights": True},
        fields={**LEARNED, "qkv_bias": True, "o_bias": True, "ffn_bias": True},
        inputs_first=True,
        ffn_ratio=4,
        base="transformer.",
    ),
    "opt": Family(
        {
            "self_attn_layer_norm": "attn_norm",
            "final_layer_norm": "ffn_norm",
            **{f"self_attn.{name}_proj": f"attn/{name}" for name in "qkv"},
            "self_attn.out_proj": "attn/o",
            "fc1": "ffn/up",
            "fc2": "ffn/down",
        },
        layers="model.decoder.layers.",
        outer={
            "model.decoder.embed_tokens": "embed",
            "model.decoder.embed_positions": "positions",
            "model.decoder.final_layer_norm": "norm",
            "lm_head": "head",
        },
        names={
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "attention_bias": "enable_bias",
            "mlp_bias": "enable_bias",
        },
        settings={
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "relu",
            "rms_norm_eps": 1e-5,
            "word_embed_proj_dim": None,
        },
        only={"do_layer_norm_before": True, "layer_norm_elementwise_affine": True},
        fields=LEARNED,
        skipped_positions=2,
        base="model.",
    ),
    "bert": Family(
        {
            **{f"attention.self.{name}": f"attn/{name[0]}" for name in ("query", "key", "value")},
            "attention.output.dense": "attn/o",
            "attention.output.LayerNorm": "attn_sum_norm",
            "intermediate.dense": "ffn/up",
            "output.dense": "ffn/down",
            "output.LayerNorm": "ffn_sum_norm",
        },
        layers="bert.encoder.layer.",
        outer={
            "bert.embeddings.word_embeddings": "embed",
            "bert.embeddings.position_embeddings": "positions",
            "bert.embeddings.token_type_embeddings": "types",
            "bert.embeddings.LayerNorm": "embed_norm",
            "bert.pooler.dense": "pooler",
            "cls.predictions": "words",
            "cls.predictions.transform.dense": "transform",
            "cls.predictions.transform.LayerNorm": "transform_norm",
            "classifier": "head",
            "qa_outputs": "head",
        },
        names={"rms_norm_eps": "layer_norm_eps"},
        settings={
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-12,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "type_vocab_size": 2,
        },
        only={"is_decoder": False, "position_embedding_type": "absolute", "directionality": "bidi"},
        fields={**BOTH_WAYS, "placement": "sum"},
        heads={
            "BertModel": "states",
            "BertForMaskedLM": "words",
            "BertForPreTraining": "words",
            "BertForSequenceClassification": "pooled",
            "BertForTokenClassification": "each",
            "BertForQuestionAnswering": "each",
        },
        spare=("bert.pooler.", "cls."),
        base="bert.",
    ),
    "vit": Family(
        {
            "layernorm_before": "attn_norm",
            **{f"attention.attention.{name}": f"attn/{name[0]}" for name in ("query", "key", "value")},
            "attention.output.dense": "attn/o",
            "layernorm_after": "ffn_norm",
            "intermediate.dense": "ffn/up",
            "output.dense": "ffn/down",
        },
        layers="vit.encoder.layer.",
        outer={
            "vit.embeddings.cls_token": "first",
            "vit.embeddings.patch_embeddings.projection": "patches",
            "vit.embeddings.position_embeddings": "positions",
            "vit.layernorm": "norm",
            "classifier": "head",
        },
        names={"rms_norm_eps": "layer_norm_eps", "attention_bias": "qkv_bias"},
        settings={
            "vocab_size": 0,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-12,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "image_size": 224,
            "patch_size": 16,
            "num_channels": 3,
            "pooler_output_size": None,
            "pooler_act": "tanh",
        },
        fields={name: value for name, value in BOTH_WAYS.items() if name != "qkv_bias"},
        heads={"ViTModel": "states", "ViTForImageClassification": "first"},
        spare=("vit.pooler.",),
        base="vit.",
    ),
}
