"""BERT and ViT against transformers: small random models it saved, read by us, states and the logits of every head."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.models import load_encoder

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
WORDS = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16, "hidden_dropout_prob": 0.1}
PICTURES = {**SIZES, "image_size": [8, 12], "patch_size": [4, 3], "num_channels": 2}
CASES = {
    "BertModel": {},
    "BertForMaskedLM": {"hidden_act": "gelu_new"},
    "BertForPreTraining": {"layer_norm_eps": 1e-2},
    "BertForSequenceClassification": {"num_labels": 5},
    "BertForTokenClassification": {"type_vocab_size": 1, "num_labels": 3},
    "BertForQuestionAnswering": {},
    "ViTModel": {"hidden_act": "relu"},
    "ViTForImageClassification": {"num_labels": 7},
    "ViTForImageClassification, square, no biases": {"image_size": 9, "patch_size": 3, "qkv_bias": False},
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_of_every_head(tmp_path, case):
    """Parameters away from where they start, norms and biases included; the second text is padded."""
    transformers, torch = pytest.importorskip("transformers", minversion="5.0"), pytest.importorskip("torch")
    name, words = case.partition(",")[0], case.startswith("Bert")
    kind = transformers.BertConfig if words else transformers.ViTConfig
    config = kind(**{**(WORDS if words else PICTURES), **CASES[case]}, attn_implementation="eager")
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for w in theirs.parameters():
            w.add_(0.3 * torch.randn_like(w))
    theirs.save_pretrained(tmp_path)
    model, params, _ = load_encoder(tmp_path)
    random = np.random.default_rng(0)
    if words:
        tokens, mask = random.integers(0, 50, (2, 11)), np.ones((2, 11), int)
        mask[1, 7:] = 0
        types = random.integers(0, config.type_vocab_size, (2, 11))
        positions = np.where(mask == 1, np.arange(11), -1)
        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
        ours = np.asarray(model(params, *(jnp.asarray(a, jnp.int32) for a in (tokens, positions, types))))
    else:
        height, width = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
        mask, pixels = np.ones((2, 1), int), random.normal(size=(2, 2, height, width)).astype(np.float32)
        given, ours = {"pixel_values": pixels}, np.asarray(model(params, jnp.asarray(pixels)))
    with torch.no_grad():
        out = theirs(**{key: torch.from_numpy(value) for key, value in given.items()})
    if name == "BertForQuestionAnswering":
        expected = torch.stack([out.start_logits, out.end_logits], dim=-1)
    elif name.endswith("Model"):
        expected = out.last_hidden_state
    else:
        expected = out.prediction_logits if name == "BertForPreTraining" else out.logits
    expected = expected.numpy()
    assert ours.shape == expected.shape and np.std(expected) > 0.1, "the outputs say nothing"
    if words and ours.ndim == 3:  # what padding becomes has no meaning
        ours, expected = ours[mask == 1], expected[mask == 1]
    error = np.max(np.linalg.norm(ours - expected, axis=-1) / np.linalg.norm(expected, axis=-1))
    print(f"\n{case}: relative error at most {error:.1e}")
    assert error <= 1e-4
