"""Mixtures of experts: the function, its decoding, and what quantizing and measuring a leaf of experts does."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

import qjax
from qjax.io import layout
from qjax.io.containers import CONTAINERS
from qjax.models import Architecture, Decoder, Experts, load, stack_layers
from qjax.models.configuration import read_architecture
from qjax.models.decoder import nest
from qjax.models.experts import mixture
from qjax.trace.uses import uses

PLAIN = Architecture(vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=20, theta=1000.0)
SHARED = dataclasses.replace(PLAIN, experts=Experts(5, 2, 8, shared=12, normalized=False, dense=(0,)))
MIXED = dataclasses.replace(PLAIN, experts=Experts(4, 2, 8))
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 8)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(8, dtype=np.int32), (2, 8))
COMPRESSED = CONTAINERS["compressed-tensors"]
NAMES = ("gate", "up", "down")


def params_of(arch):
    random = np.random.default_rng(0)
    return nest({path: random.normal(0, 0.5, shape).astype(np.float32) for path, shape in arch.shapes.items()})


def plain_mixture(e, ffn, x):
    """The equations in float64, one token and one expert at a time."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), ffn)

    def through(w, x):
        gate = x @ w["gate"]
        return (gate / (1 + np.exp(-gate)) * (x @ w["up"])) @ w["down"]

    out = []
    for token in np.asarray(x, np.float64).reshape(-1, x.shape[-1]):
        weights = np.exp(token @ p["router"])
        weights = weights / weights.sum()
        best = sorted(range(e.count), key=lambda i: -weights[i])[: e.active]
        weights = weights / sum(weights[i] for i in best) if e.normalized else weights
        y = sum(weights[i] * through({n: p["experts"][n][i] for n in NAMES}, token) for i in best)
        if e.shared:
            y = y + through(p["shared"], token) / (1 + np.exp(-(token @ p["shared_gate"])))
        out.append(y)
    return np.reshape(out, x.shape)


@pytest.mark.parametrize("arch", [SHARED, MIXED], ids=["shared", "normalized"])
def test_a_mixture_is_that_of_the_equations(arch):
    ffn = params_of(arch)["layers"]["1"]["ffn"]
    x = np.random.default_rng(1).normal(size=(3, 7, 16)).astype(np.float32)
    np.testing.assert_allclose(mixture(arch, ffn, x), plain_mixture(arch.experts, ffn, x), rtol=1e-4, atol=1e-4)


def test_decoding_is_the_forward_pass():
    """With a layer that has no experts below one that has them, and padding in front."""
    model, params = Decoder(SHARED), params_of(SHARED)
    expected = model(params, TOKENS)
    padded, at = np.pad(TOKENS, ((0, 0), (1, 0))), np.arange(-1, 8, dtype=np.int32)
    state, got = model.init_cache(2, 8), []
    for part in (slice(0, 7), slice(7, 8), slice(8, 9)):
        logits, state = model.decode(params, state, padded[:, part], np.broadcast_to(at[part], (2, len(at[part]))))
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, axis=1)[:, 1:], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="layers/1 differs"):
        stack_layers(params)


def test_routers_and_gates_are_left_alone_and_a_scan_has_the_same_targets():
    found = uses(Decoder(SHARED), params_of(SHARED), TOKENS)
    assert found.excluded["layers/1/ffn/router"].startswith("a router")
    assert found.excluded["layers/1/ffn/shared_gate"].startswith("a gate: one output")
    below = [path for path in found.targets() if path.startswith("layers/1/ffn/")]
    assert below == [f"layers/1/ffn/{kind}/{name}" for kind in ("experts", "shared") for name in NAMES]
    use = found.matrix("layers/1/ffn/experts/down")
    assert (use.batch_axes, use.matrix_shape, use.tokens) == ((-3,), (5, 8, 16), 32)
    scanned = uses(Decoder(MIXED, scan=True), stack_layers(params_of(MIXED)), TOKENS)
    assert {f"layers/ffn/experts/{name}" for name in NAMES} < set(scanned.targets())
    assert scanned.matrix("layers/ffn/experts/up").batch_axes == (-4, -3)


def test_a_scan_measures_what_the_loop_does_and_tokens_are_counted_by_expert():
    params = params_of(MIXED)
    looped = qjax.observe(Decoder(MIXED), params, [TOKENS], ("gram",))
    scanned = qjax.observe(Decoder(MIXED, scan=True), stack_layers(params), [TOKENS], ("gram",))
    for name in NAMES:
        own = [looped[f"layers/{i}/ffn/experts/{name}"] for i in range(2)]
        for statistic in ("gram", "count"):
            both = np.stack([one[statistic] for one in own])
            np.testing.assert_allclose(scanned[f"layers/ffn/experts/{name}"][statistic], both, rtol=1e-4, atol=1e-3)
        assert [float(one["count"].sum()) for one in own] == [32.0, 32.0]  # 16 tokens pass two experts each
        assert own[0]["gram"].shape == (4, *((8, 8) if name == "down" else (16, 16)))


@pytest.fixture(scope="module")
def one_token():
    """GPTQ with a calibration of a single token: it passes two experts of four, so that two meet none."""
    params = params_of(MIXED)
    return params, *qjax.run(qjax.gptq("int4_g8_f32"), Decoder(MIXED), params, [TOKENS[:1, :1]])


def test_gptq_rounds_an_expert_without_tokens_to_nearest_and_names_it(one_token):
    params, quantized, report = one_token
    rows = {row["path"]: row for row in report.rows if "/experts/" in row["path"]}
    assert len(rows) == 6
    for path, row in rows.items():
        assert sorted(row["tokens"]) == [0, 0, 1, 1]
        silent = [i for i, n in enumerate(row["tokens"]) if n == 0]
        named = ", ".join(f"[{i}]" for i in silent)
        assert f"{named} met no token in calibration" in row["warnings"]
        assert any(w.startswith(named) and w.endswith("rounded to nearest") for w in row["warnings"])
        _, layer, _, _, name = path.split("/")
        w, q = (tree["layers"][layer]["ffn"]["experts"][name] for tree in (params, quantized))
        same = np.all(np.asarray(q.codes) == qjax.quantize(w, "int4_g8_f32").codes, axis=(1, 2))
        assert same.tolist() == [n == 0 for n in row["tokens"]]
        assert row["error_after"] < 0.9 * row["error_before"]


def test_quantized_experts_compute_what_their_values_do(one_token):
    _, quantized, _ = one_token
    values = jax.tree.map(qjax.dense, quantized, is_leaf=lambda x: isinstance(x, qjax.QArray))
    expected = Decoder(MIXED)(values, TOKENS)
    np.testing.assert_allclose(qjax.quantized(Decoder(MIXED))(quantized, TOKENS), expected, rtol=1e-4, atol=1e-4)
    rounded, report = qjax.run(qjax.rtn("int8"), Decoder(MIXED), params_of(MIXED), [TOKENS])
    assert len(report.targets) == 14 and "layers/0/ffn/router" in report.excluded
    assert rounded["layers"]["0"]["ffn"]["experts"]["up"].codes.shape == (4, 16, 8)


SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5}
SIZES |= {"intermediate_size": 8, "num_key_value_heads": 2, "rope_theta": 1000.0, "tie_word_embeddings": True}
MIXTRAL = {**SIZES, "model_type": "mixtral", "num_local_experts": 4}


def folder(path, params, config, spoil=lambda tensors: None):
    """A Mixtral folder as the hub has it, one tensor an expert; quantized matrices as compressed-tensors has them."""
    theirs = {"gate": "w1", "up": "w3", "down": "w2"}
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    tensors, stored = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["norm"]["scale"]}, {}
    for i, layer in params["layers"].items():
        prefix = f"model.layers.{i}"
        tensors |= {f"{prefix}.{theirs}.weight": layer[ours]["scale"] for ours, theirs in norms.items()}
        tensors |= {f"{prefix}.self_attn.{name}_proj.weight": w.T for name, w in layer["attn"].items()}
        tensors[f"{prefix}.block_sparse_moe.gate.weight"] = layer["ffn"]["router"].T
        for ours, name in theirs.items():
            for expert in range(4):
                module, w = f"{prefix}.block_sparse_moe.experts.{expert}.{name}", layer["ffn"]["experts"][ours]
                if isinstance(w, np.ndarray):
                    tensors[f"{module}.weight"] = w[expert].T
                    continue
                stored[module] = COMPRESSED.store(module, jax.tree.map(lambda a, e=expert: a[e], w), None)
                written = layout.write(module, stored[module].leaf, stored[module].layout, "float32")
                tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in written.items()}
    if stored:
        floats = [name.removesuffix(".weight") for name in tensors if name.endswith(("proj.weight", "gate.weight"))]
        config = {**config, "quantization_config": COMPRESSED.settings(stored, floats)}
    spoil(tensors)
    path.mkdir()
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(path / "tokenizer.json"))
    return path


def test_experts_stored_one_by_one_become_one_leaf(tmp_path):
    params = params_of(MIXED)
    model, found, _ = load(folder(tmp_path / "model", params, MIXTRAL))
    assert model.arch == dataclasses.replace(MIXED, ffn=8)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_quantized_experts_are_read_as_one_leaf_with_their_codes(tmp_path, one_token):
    quantized, mixed = one_token[1], params_of(MIXED)
    for i in "01":
        mixed["layers"][i]["ffn"]["experts"] = quantized["layers"][i]["ffn"]["experts"]
    _, found, _ = load(folder(tmp_path / "model", mixed, MIXTRAL))
    for i in "01":
        for name in NAMES:
            ours, theirs = (tree["layers"][i]["ffn"]["experts"][name] for tree in (found, mixed))
            np.testing.assert_array_equal(ours.codes, theirs.codes)
            np.testing.assert_array_equal(qjax.dense(ours), qjax.dense(theirs))


FIRST = "model.layers.0.block_sparse_moe.experts."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop(f"{FIRST}2.w1.weight"), "layers/0/ffn/experts/gate has 4 experts; the checkpoint lacks 2"),
        (lambda t: t.update({f"{FIRST}9.w1.weight": t[f"{FIRST}2.w1.weight"]}), "also has 9"),
        (lambda t: t.update({f"{FIRST}1.w2.weight": np.zeros((8, 16), np.float32)}), r"stored as \(8, 16\)"),
        (lambda t: t.update({f"{FIRST}01.w2.weight": np.zeros((16, 8), np.float32)}), "no parameter of this family"),
        (lambda t: t.update({f"{FIRST}1.w2.bias": np.zeros(16, np.float32)}), "no parameter of this family"),
    ],
)
def test_experts_that_do_not_fit_are_refused(tmp_path, spoil, message):
    with pytest.raises(ValueError, match=message):
        load(folder(tmp_path / "model", params_of(MIXED), MIXTRAL, spoil))


def test_settings_of_experts_become_data():
    def read(kind, **settings):
        return read_architecture({**SIZES, "model_type": kind, **settings}).experts

    assert read("mixtral") == Experts(8, 2, 8)
    routed = {"num_experts": 16, "moe_intermediate_size": 12, "norm_topk_prob": True}
    assert read("qwen3_moe", **routed) == Experts(16, 8, 12)
    assert read("qwen3_moe", num_local_experts=9, **routed) == Experts(9, 8, 12)
    assert read("qwen3_moe", **routed, mlp_only_layers=[0]) == Experts(16, 8, 12, dense=(0,))
    assert read("qwen3_moe", **routed, mlp_only_layers=[0, 1]) is None
    assert read("qwen2_moe", decoder_sparse_step=2) == Experts(60, 4, 1408, 5632, normalized=False, dense=(0,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "active=9"),
        ({"model_type": "mixtral", "num_local_experts": 2**40}, "there can be"),
        ({"model_type": "qwen2_moe", "use_sliding_window": True}, "use_sliding_window is True"),
        ({"model_type": "qwen2_moe", "qkv_bias": False}, "qkv_bias is False"),
        ({"model_type": "llama", "num_experts": 4}, "num_experts is 4"),
    ],
)
def test_impossible_experts_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        read_architecture({**SIZES, **settings})
