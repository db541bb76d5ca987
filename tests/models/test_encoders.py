"""Encoders: BERT's and ViT's layers written out in numpy, folders read, equivalences and quantization of a toy."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.equivalence import rotate_stream, rotate_values
from qjax.io.tensors import write_tensors
from qjax.models import Architecture, Decoder, Encoder, Encoding, Patches, load, load_encoder, stack_layers
from qjax.models.configuration import read_architecture
from qjax.models.decoder import nest
from qjax.operators import Hadamard
from qjax.trace.paths import leaves_with_paths, replace_leaves

WAYS = {"norm": "layer", "gated": False, "activation": "gelu", "rotary": 0, "learned_positions": True, "eps": 1e-3}
BIASES = dict.fromkeys(("qkv_bias", "o_bias", "ffn_bias"), True)
SIZES = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 64}
BERT = Architecture(vocab=40, context=9, placement="sum", **SIZES, **WAYS, **BIASES, encoding=Encoding(2, head="words"))
PATCHES = Patches((4, 6), (2, 3))
VIT = Architecture(
    vocab=0, context=5, **SIZES, **WAYS, **BIASES, encoding=Encoding(patches=PATCHES, head="first", classes=3)
)
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, 40, (2, 7)).astype(np.int32)
TYPES = RANDOM.integers(0, 2, (2, 7)).astype(np.int32)
PADDED = np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, -1, -1, -1]], np.int32)
PICTURES = RANDOM.normal(size=(2, 3, 4, 6)).astype(np.float32)


def params_of(arch):
    random = np.random.default_rng(1)
    return nest({path: random.normal(0, 0.4, shape).astype(np.float32) for path, shape in arch.shapes.items()})


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def norm(p, x):
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-3) * p["scale"] + p["bias"]


def attention(p, x, seen):
    """x [tokens, width]; `seen` [tokens]: whose keys are read."""
    q, k, v = ((x @ p[n] + p[f"{n}_bias"]).reshape(len(x), 2, 16).transpose(1, 0, 2) for n in "qkv")
    s = q @ k.transpose(0, 2, 1) / 4 + np.where(seen, 0, -np.inf)
    e = np.exp(s - s.max(-1, keepdims=True))
    mixed = (e / e.sum(-1, keepdims=True)) @ v
    return mixed.transpose(1, 0, 2).reshape(len(x), 32) @ p["o"] + p["o_bias"]


def feed_forward(p, x):
    return erf_gelu(x @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]


def bert(p, tokens, types, seen):
    """Logits of words, from the paper's equations."""
    x = norm(p["embed_norm"], p["embed"][tokens] + p["positions"][: len(tokens)] + p["types"][types])
    for layer in p["layers"].values():
        x = norm(layer["attn_sum_norm"], x + attention(layer["attn"], x, seen))
        x = norm(layer["ffn_sum_norm"], x + feed_forward(layer["ffn"], x))
    h = norm(p["transform_norm"], erf_gelu(x @ p["transform"] + p["transform_bias"]))
    return h @ p["embed"].T + p["words_bias"]


def vit(p, picture):
    """Logits of classes."""
    cut = [picture[:, i : i + 2, j : j + 3].ravel() for i in (0, 2) for j in (0, 3)]
    x = np.concatenate([p["first"], np.stack(cut) @ p["patches"] + p["patches_bias"]]) + p["positions"]
    for layer in p["layers"].values():
        x = x + attention(layer["attn"], norm(layer["attn_norm"], x), np.ones(5, bool))
        x = x + feed_forward(layer["ffn"], norm(layer["ffn_norm"], x))
    return norm(p["norm"], x)[0] @ p["head"] + p["head_bias"]


@pytest.mark.parametrize("scan", [False, True])
def test_encoders_are_the_equations(scan):
    """Padding is seen by nobody; what a padded token itself becomes has no meaning."""
    params = params_of(BERT)
    exact = jax.tree.map(np.float64, params)
    ours = Encoder(BERT, scan)(stack_layers(params) if scan else params, TOKENS, PADDED, TYPES)
    for got, tokens, types, at in zip(np.asarray(ours), TOKENS, TYPES, PADDED, strict=True):
        np.testing.assert_allclose(got[at >= 0], bert(exact, tokens, types, at >= 0)[at >= 0], rtol=1e-3, atol=1e-3)
    params = params_of(VIT)
    exact = jax.tree.map(np.float64, params)
    ours = Encoder(VIT, scan)(stack_layers(params) if scan else params, PICTURES)
    np.testing.assert_allclose(ours, [vit(exact, picture) for picture in PICTURES], rtol=1e-3, atol=1e-3)


def folder_of(path, config, tensors):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    write_tensors(path, {name: np.ascontiguousarray(w) for name, w in tensors.items()})
    return path


def named(leaves, layers, modules, outer):
    """Tensors by the names of a family, matrices turned, from our leaves."""
    found = {}
    for path, w in leaves.items():
        own, suffix = path, "weight"
        for end, other in (("/scale", "weight"), ("/bias", "bias"), ("_bias", "bias")):
            if path.endswith(end):
                own, suffix = path.removesuffix(end), other
        if own.startswith("layers/"):
            _, i, local = own.split("/", 2)
            name = f"{layers}{i}.{modules[local]}"
        else:
            name = outer[own]
        turned = w.ndim == 2 and own not in ("embed", "positions", "types", "first")
        found[f"{name}.{suffix}"] = w.T if turned else w
    return found


COMMON = {"attn/o": "attention.output.dense", "ffn/up": "intermediate.dense", "ffn/down": "output.dense"}
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-3,
    "hidden_act": "gelu",
}
BERT_CONFIG = {**CONFIG, "model_type": "bert", "vocab_size": 40, "max_position_embeddings": 9}
WORDS = {**BERT_CONFIG, "architectures": ["BertForMaskedLM"]}
VIT_CONFIG = {**CONFIG, "model_type": "vit", "image_size": [4, 6], "patch_size": [2, 3]}


def bert_tensors():
    qkv = {f"attn/{name[0]}": f"attention.self.{name}" for name in ("query", "key", "value")}
    sums = {"attn_sum_norm": "attention.output.LayerNorm", "ffn_sum_norm": "output.LayerNorm"}
    outer = {
        "embed": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "embed_norm": "bert.embeddings.LayerNorm",
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "words": "cls.predictions",
    }
    leaves = leaves_with_paths(params_of(BERT))
    return named(leaves, "bert.encoder.layer.", {**COMMON, **qkv, **sums}, outer)


def test_a_bert_of_the_first_days_is_read(tmp_path):
    """gamma and beta, a buffer of positions, the embedding once more, the heads of pretraining."""
    params, tensors = params_of(BERT), bert_tensors()
    for name in [name for name in tensors if "LayerNorm" in name]:
        old = name.replace("weight", "gamma").replace("bias", "beta")
        tensors[old] = tensors.pop(name)
    tensors |= {
        "bert.embeddings.position_ids": np.arange(9)[None],
        "cls.predictions.decoder.weight": params["embed"],
        "cls.seq_relationship.weight": np.zeros((2, 32)),
        "bert.pooler.dense.weight": np.zeros((32, 32)),
        "bert.pooler.dense.bias": np.zeros(32),
    }
    config = {**WORDS, "pooler_fc_size": 768}
    model, again, words = load_encoder(folder_of(tmp_path / "m", config, tensors))
    assert (model, words) == (Encoder(BERT), None)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    with pytest.raises(ValueError, match=r"holds an encoder .* use qjax.models.load_encoder"):
        load(tmp_path / "m")


def test_a_quantized_bert_is_read(tmp_path):
    """Bytes with a scale for each output, in a layer and in the head."""
    random, tensors, expected = np.random.default_rng(2), bert_tensors(), {}
    modules = {
        "transform": "cls.predictions.transform.dense",
        "layers/1/ffn/up": "bert.encoder.layer.1.intermediate.dense",
    }
    for path, module in modules.items():
        outputs, inputs = tensors[f"{module}.weight"].shape
        codes, scale = (
            random.integers(-127, 128, (outputs, inputs), np.int8),
            2.0 ** random.integers(-9, -5, (outputs, 1)),
        )
        tensors |= {f"{module}.weight": codes, f"{module}.weight_scale": scale.astype(np.float32)}
        expected[path] = (codes * scale).T
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    settings["config_groups"] = {"group_0": {"targets": list(modules.values()), "weights": weights}}
    folder = folder_of(tmp_path / "m", {**WORDS, "quantization_config": settings}, tensors)
    leaves = leaves_with_paths(load_encoder(folder)[1])
    assert {path for path, leaf in leaves.items() if isinstance(leaf, qjax.QArray)} == set(modules)
    for path, w in expected.items():
        np.testing.assert_array_equal(qjax.dequantize(leaves[path]), w)


def test_a_vit_is_read(tmp_path):
    params = params_of(VIT)
    qkv = {f"attn/{name[0]}": f"attention.attention.{name}" for name in ("query", "key", "value")}
    norms = {"attn_norm": "layernorm_before", "ffn_norm": "layernorm_after"}
    outer = {"patches": "patches", "norm": "vit.layernorm", "head": "classifier", "first": "f", "positions": "p"}
    tensors = named(leaves_with_paths(params), "vit.encoder.layer.", {**COMMON, **qkv, **norms}, outer)
    projection = "vit.embeddings.patch_embeddings.projection"
    tensors[f"{projection}.weight"] = tensors.pop("patches.weight").reshape(32, 3, 2, 3)
    tensors[f"{projection}.bias"] = tensors.pop("patches.bias")
    tensors["vit.embeddings.cls_token"] = tensors.pop("f.weight")[None]
    tensors["vit.embeddings.position_embeddings"] = tensors.pop("p.weight")[None]
    config = {**VIT_CONFIG, "architectures": ["ViTForImageClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}
    model, again, _ = load_encoder(folder_of(tmp_path / "m", config, tensors))
    assert model == Encoder(VIT)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_settings_of_any_structure_are_read_or_refused():
    junk = [None, True, -1, 0, 1, 2**40, 1e30, float("nan"), "", "x", [], [1], [1, 2], [None, 1], {}, {"a": 1}]
    named = {"id2label": {"0": "a"}, "num_labels": 1}
    bert = {**WORDS, "architectures": ["BertForTokenClassification"], "type_vocab_size": 2, **named}
    vit = {**VIT_CONFIG, "architectures": ["ViTForImageClassification"], "num_channels": 3, **named}
    for config in (bert, vit):
        for key in config.keys() - {"model_type"}:
            for value in junk:
                with contextlib.suppress(ValueError):
                    assert read_architecture({**config, key: value}).encoding is not None


def test_what_an_encoder_is_not_is_refused(tmp_path):
    sizes = {**SIZES, "vocab": 40}
    for make, message in (
        (lambda: Decoder(BERT), "use qjax.models.Encoder"),
        (lambda: Encoder(Architecture(**sizes)), "use qjax.models.Decoder"),
        (lambda: Architecture(**sizes, placement="sum"), "set encoding"),
        (lambda: dataclasses.replace(BERT, windows=(3,)), r"windows=\(3,\)"),
        (lambda: dataclasses.replace(VIT, context=6), "the 4 patches"),
        (lambda: dataclasses.replace(VIT, vocab=3), "vocab must be positive, and 0 for patches"),
        (lambda: Patches((4, 6), (2, 4)), "do not fill"),
        (lambda: Encoding(head="last"), "'last'"),
        (lambda: Encoding(head="first"), "classes=0"),
        (lambda: Encoding(patches=PATCHES, types=2), "types=2"),
        (lambda: Encoder(BERT)({}, TOKENS[0]), r"\(7,\)"),
        (lambda: Encoder(VIT)({}, PICTURES[:, :2]), r"\(2, 2, 4, 6\)"),
        (lambda: Encoder(VIT)({}, PICTURES, PADDED), "positions are for words"),
        (lambda: Encoder(VIT)({}, PICTURES, types=TYPES), "types are given"),
        (lambda: read_architecture({**BERT_CONFIG, "architectures": ["BertForMultipleChoice"]}), "MultipleChoice"),
        (lambda: read_architecture({**BERT_CONFIG, "is_decoder": True}), "is_decoder is True"),
        (lambda: read_architecture({**BERT_CONFIG, "position_embedding_type": "relative_key"}), "relative_key"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    llama = {**CONFIG, "model_type": "llama", "vocab_size": 40, "rms_norm_eps": 1e-5}
    llama = {name: value for name, value in llama.items() if name not in ("layer_norm_eps", "hidden_act")}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    with pytest.raises(ValueError, match=r"holds a decoder \(llama\); use qjax.models.load"):
        load_encoder(tmp_path)


def test_rewrites_that_the_wiring_calls_exact():
    """The stream turns where norms stand in front and subtract no mean; the values turn too."""
    pooled = dataclasses.replace(BERT, norm="rms", placement="pre", encoding=Encoding(2, head="pooled", classes=3))
    for arch, inputs, ends in (
        (dataclasses.replace(VIT, norm="rms"), PICTURES, {"patches", "patches_bias", "first", "positions", "head"}),
        (pooled, TOKENS, {"embed", "positions", "types", "pooler"}),
    ):
        model, params = Encoder(arch), params_of(arch)
        model.topology.check(arch.shapes)
        leaves = leaves_with_paths(params)
        new = rotate_values(leaves, model.topology, Hadamard.random(jax.random.key(1), 16))
        new |= rotate_stream({**leaves, **new}, model.topology, Hadamard.random(jax.random.key(0), 32))
        assert ends | {"layers/0/attn/v", "layers/1/ffn/down_bias"} <= set(new)
        expected = model(params, inputs)
        np.testing.assert_allclose(model(replace_leaves(params, new), inputs), expected, rtol=1e-3, atol=1e-3)


def test_a_stream_that_is_normalized_or_comes_out_does_not_turn():
    states = dataclasses.replace(VIT, encoding=Encoding(patches=PATCHES))
    for arch in (BERT, states):
        wiring = Encoder(arch).topology
        assert wiring.readers == wiring.writers == ()
    assert Encoder(BERT).topology.norms == ()
    assert [norm.gain for norm in Encoder(states).topology.norms][-1] == "layers/1/ffn_norm/scale"


@pytest.mark.parametrize("arch", [BERT, VIT], ids=["bert", "vit"])
def test_runs_quantize_encoders(arch):
    """Block by block, padding hidden. What comes of a layer's inputs is nearer to the float than under rounding."""
    model, params = Encoder(arch), jax.tree.map(jnp.asarray, params_of(arch))
    batch, seen = ((PICTURES,), None) if arch is VIT else ((TOKENS, PADDED, TYPES), [jnp.float32(PADDED >= 0)])
    layers = {
        f"layers/{i}/{name}"
        for i in range(2)
        for name in ("attn/q", "attn/k", "attn/v", "attn/o", "ffn/up", "ffn/down")
    }

    def call(params, batch):
        return model(params, *batch)

    rounded, report = qjax.run(qjax.rtn("int3_g32"), call, params, [batch], where="layers/*")
    assert set(report.targets) == layers
    solved, report = qjax.run(qjax.gptq("int3_g32"), call, params, [batch], weights=seen)
    others = {"patches": 2 * 4, "head": 2} if arch is VIT else {"transform": 11}
    tokens = 2 * 5 if arch is VIT else 11
    assert {row["path"]: row["tokens"] for row in report.rows} == dict.fromkeys(layers, tokens) | others
    assert all(row["error_after"] < 0.8 * row["error_before"] for row in report.rows)
    fast = qjax.quantized(call, strict=True)
    for qparams in (rounded, solved):
        found = {p: qjax.dequantize(q) for p, q in leaves_with_paths(qparams).items() if isinstance(q, qjax.QArray)}
        assert len(found) >= len(layers)
        expected = call(replace_leaves(qparams, found), batch)
        np.testing.assert_allclose(fast(qparams, batch), expected, rtol=1e-3, atol=1e-3)
