"""What llm-compressor writes, opened by us."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import qjax
from qjax.models import Tokenizer, load
from qjax.trace.paths import leaves_with_paths

pytestmark = pytest.mark.oracle

WORDS = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
SCHEMES = ["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_llmcompressor_folders_are_read_exactly(tmp_path, scheme):
    """A model that `oneshot` quantizes: our values are those of its own decompression, in float32 bit for bit."""
    torch = pytest.importorskip("torch")
    llmcompressor = pytest.importorskip("llmcompressor")
    from compressed_tensors.compressors import BaseCompressor
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from safetensors import safe_open
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "f")
    WORDS.write(tmp_path / "f")
    recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    model = llmcompressor.oneshot(model=str(tmp_path / "f"), recipe=recipe, output_dir=str(tmp_path / "m"))
    _, params, _ = load(tmp_path / "m")
    form = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["format"]
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    ours = leaves_with_paths(params)
    names = {"attn/q": "self_attn.q_proj", "attn/k": "self_attn.k_proj", "ffn/down": "mlp.down_proj"}
    for path, name in names.items():
        module = model.get_submodule(f"model.layers.0.{name}")
        prefix = f"model.layers.0.{name}."
        local = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        done = BaseCompressor.get_value_from_registry(form).decompress(local, module.quantization_scheme)
        theirs = done["weight"].float().numpy().T
        leaf = ours[f"layers/0/{path}"]
        leaf = leaf.op if isinstance(leaf, qjax.Pre) else leaf
        values = qjax.dequantize(leaf)
        if done["weight"].dtype == torch.bfloat16:
            values = values.astype(jnp.bfloat16).astype(jnp.float32)
        if scheme == "NVFP4A16":  # it divides by what we multiply with the reciprocal of
            np.testing.assert_allclose(values, theirs, rtol=2**-7)
            assert np.mean(np.asarray(values) == theirs) > 0.999
        else:
            np.testing.assert_array_equal(values, theirs)
