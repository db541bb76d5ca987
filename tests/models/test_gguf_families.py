"""GGUF files of every architecture, in llama.cpp's own words: keys, tensors, and back bit for bit."""

from __future__ import annotations

import dataclasses
import re

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import ggml
from qjax.models import Decoder, Experts
from qjax.models.decoder import nest
from qjax.models.gguf import read_architecture, read_parameters
from qjax.models.gguf_families import FREQUENCIES, architecture_of, family_of, metadata_of
from qjax.trace.paths import leaves_with_paths
from tests.models.gguf_archs import ARCHS, params_of

# What the converter of llama.cpp writes, without what all of these have, and the shapes of a layer, inputs last.
SIZES = {"context_length": 128, "embedding_length": 64, "block_count": 2, "rope.freq_base": 500.0, "vocab_size": 9}
SIZES |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 2.0**-20}
SIZES |= {"feed_forward_length": 96, "rope.dimension_count": 16}
SHORT = {"attention.key_length": 16, "attention.value_length": 16}
LONG = {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}
ROUTED = {"expert_count": 3, "expert_used_count": 2}
KEYS = {
    "llama": SHORT | ROUTED | {"feed_forward_length": 32},
    "qwen2moe": SHORT | ROUTED | {"expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 64},
    "qwen3moe": LONG | ROUTED | {"expert_feed_forward_length": 32},
    "gemma2": LONG | {"attention.sliding_window": 24, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3": LONG
    | {"attention.sliding_window": 24, "block_count": 7, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    "phi3": {
        "rope.dimension_count": 12,
        "attention.sliding_window": 128,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.attn_factor": 1.25,
    },
}
NORMS = {"attn_norm.weight": (64,), "ffn_norm.weight": (64,)}
ATTENTION = {"attn_q.weight": (64, 64), "attn_k.weight": (32, 64), "attn_v.weight": (32, 64)}
ATTENTION |= {"attn_output.weight": (64, 64), **NORMS}
WIDE = {"attn_q.weight": (128, 64), "attn_k.weight": (64, 64), "attn_v.weight": (64, 64)}
WIDE |= {"attn_output.weight": (64, 128), **NORMS}
HEADS = {"attn_q_norm.weight": (32,), "attn_k_norm.weight": (32,)}
ROUTER = {"ffn_gate_inp.weight": (3, 64), "ffn_gate_exps.weight": (3, 32, 64), "ffn_up_exps.weight": (3, 32, 64)}
ROUTER |= {"ffn_down_exps.weight": (3, 64, 32)}
PLAIN = {"ffn_gate.weight": (96, 64), "ffn_up.weight": (96, 64), "ffn_down.weight": (64, 96)}
BEHIND = {"post_attention_norm.weight": (64,), "post_ffw_norm.weight": (64,)}
SHARED = {"ffn_gate_shexp.weight": (64, 64), "ffn_up_shexp.weight": (64, 64), "ffn_down_shexp.weight": (64, 64)}
LAYERS = {
    "llama": ATTENTION | ROUTER,
    "qwen2moe": {
        **(ATTENTION | ROUTER | SHARED),
        "ffn_gate_inp_shexp.weight": (64,),
        "attn_q.bias": (64,),
        "attn_k.bias": (32,),
        "attn_v.bias": (32,),
    },
    "qwen3moe": WIDE | HEADS | ROUTER,
    "gemma2": WIDE | BEHIND | PLAIN,
    "gemma3": WIDE | BEHIND | PLAIN | HEADS,
    "phi3": {
        "attn_qkv.weight": (128, 64),
        "attn_output.weight": (64, 64),
        "ffn_up.weight": (192, 64),
        "ffn_down.weight": (64, 96),
        **NORMS,
    },
}


def blocks(kind, shape):
    """A quantized kernel or stack of them [..., K, N]: any codes of a type under scales that are numbers."""
    random, (*lead, inputs, outputs) = np.random.default_rng(sum(shape)), shape
    data = random.integers(
        0, 256, (*lead, outputs, inputs // ggml.TYPES[kind].block, ggml.TYPES[kind].nbytes), np.uint8
    )
    halves = random.normal(size=(*data.shape[:-1], 1)).astype(np.float16)
    data[..., :2] = halves.view(np.uint8)
    return ggml.from_bytes(jnp.asarray(data.reshape(*data.shape[:-2], -1)), kind)


def equal(tree, leaves):
    """Every array of every leaf, bit for bit."""
    found = leaves_with_paths(tree)
    assert found.keys() == leaves.keys()
    for path, leaf in leaves.items():
        assert jax.tree.structure(found[path]) == jax.tree.structure(leaf), path
        for ours, theirs in zip(jax.tree.leaves(leaf), jax.tree.leaves(found[path]), strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), path
            np.testing.assert_array_equal(np.asarray(ours).view(np.uint8), np.asarray(theirs).view(np.uint8), path)


@pytest.mark.parametrize("family", ARCHS)
def test_a_file_says_what_llama_cpp_says(tmp_path, family):
    """Keys, names, shapes and the order of fused rows; names are those the gguf package lists; and it comes back."""
    arch, params = ARCHS[family], params_of(ARCHS[family])
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(params), to="gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    keys = {key: field.contents() for key, field in reader.fields.items() if key.startswith(f"{family}.")}
    assert keys == {f"{family}.{key}": value for key, value in (SIZES | KEYS[family]).items()}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    shapes = {"token_embd.weight": (9, 64), "output_norm.weight": (64,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(arch.layers) for name, shape in LAYERS[family].items()}
    shapes |= {} if arch.tied else {"output.weight": (9, 64)}
    if family == "phi3":
        shapes |= {"rope_factors_short.weight": (6,), "rope_factors_long.weight": (6,)}
        np.testing.assert_array_equal(tensors["rope_factors_short.weight"], arch.rope_factors)
        np.testing.assert_array_equal(tensors["rope_factors_long.weight"], arch.long_factors)
        for name, parts in (("attn_qkv", ("attn/q", "attn/k", "attn/v")), ("ffn_up", ("ffn/gate", "ffn/up"))):
            rows = np.concatenate([params[f"layers/1/{part}"].T for part in parts])
            np.testing.assert_array_equal(tensors[f"blk.1.{name}.weight"], rows)
    assert {name: data.shape for name, data in tensors.items()} == shapes
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[family]
    listed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[number]}
    assert {re.sub(r"blk\.\d+", "blk.{bid}", name.rpartition(".")[0]) for name in tensors} <= listed
    again = read_architecture(reader)
    assert again == arch
    equal(read_parameters(reader, again), params)


def test_blocks_of_experts_stay_as_they_are(tmp_path):
    """In k-quants, and where these do not divide the experts' width in llama.cpp's replacement."""
    arch = dataclasses.replace(ARCHS["llama"], width=256, head_dim=64, layers=1)
    leaves = params_of(arch)
    for path in ("layers/0/attn/o", *(f"layers/0/ffn/experts/{name}" for name in ("gate", "up", "down"))):
        leaves[path] = blocks(ggml.fallback("q4_k", leaves[path].shape[-2]), leaves[path].shape)
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(leaves), to="gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    types = [tensors[f"blk.0.ffn_{name}_exps.weight"].tensor_type.name for name in ("gate", "up", "down")]
    assert types == ["Q4_K", "Q4_K", "Q5_0"]
    down = tensors["blk.0.ffn_down_exps.weight"]
    theirs = gguf.quants.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(theirs.swapaxes(1, 2), qjax.dequantize(leaves["layers/0/ffn/experts/down"]))
    equal(read_parameters(reader, read_architecture(reader), quantized=True), leaves)


def test_nvfp4_keeps_its_tensor_scales(tmp_path):
    """One a matrix, or one an expert; and a float load has the values of the blocks under them."""
    arch = dataclasses.replace(ARCHS["llama"], ffn=64, layers=1, experts=Experts(3, 2, 64))
    leaves, up = params_of(arch), "layers/0/ffn/experts/up"
    leaves["embed"] = qjax.transpose(blocks("nvfp4", leaves["embed"].shape[::-1]))  # its scale is 1
    for path in ("layers/0/attn/q", up):
        leaves[path] = qjax.quantize(jnp.asarray(leaves[path]), "nvfp4", batch_axes=leaves[path].ndim - 2)
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(leaves), to="gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    (scales,) = (tensor.data for tensor in reader.tensors if tensor.name == "blk.0.ffn_up_exps.scale")
    np.testing.assert_array_equal(scales, leaves[up].scales[0].scales[0].reshape(3))
    equal(read_parameters(reader, arch, quantized=True), leaves)
    for path, w in leaves_with_paths(read_parameters(reader, arch)).items():
        np.testing.assert_array_equal(w, qjax.dense(leaves[path]), path)
    spoiled = gguf.GGUFReader(tmp_path / "m.gguf", "r+")
    next(tensor for tensor in spoiled.tensors if tensor.name == "blk.0.ffn_up_exps.scale").data[1] = np.nan
    with pytest.raises(ValueError, match=r"ffn_up_exps.scale is float32 \(3,\); finite float32 \(3,\) is needed"):
        read_parameters(spoiled, arch)


def test_blocks_of_fused_tensors_stay_as_they_are(tmp_path):
    arch = dataclasses.replace(ARCHS["phi3"], kv_heads=4, layers=1, ffn=64, windows=(128,))
    leaves = params_of(arch)
    for path in (*(f"layers/0/attn/{name}" for name in "qkv"), "layers/0/ffn/gate", "layers/0/ffn/up"):
        leaves[path] = blocks("q5_0", (64, 64))
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(leaves), to="gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    types = {tensor.name: (tensor.tensor_type.name, tuple(tensor.shape)) for tensor in reader.tensors}
    assert types["blk.0.attn_qkv.weight"] == ("Q5_0", (64, 192))
    assert types["blk.0.ffn_up.weight"] == ("Q5_0", (64, 128))
    equal(read_parameters(reader, read_architecture(reader), quantized=True), leaves)


def test_a_window_that_llama_cpp_leaves_out_is_a_warning(tmp_path):
    arch = dataclasses.replace(ARCHS["phi3"], windows=(24, 24))
    with pytest.warns(UserWarning, match=r"windows of \(24, 24\) tokens"):
        qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(params_of(arch)), to="gguf")


def test_what_one_tensor_or_none_holds_is_refused_by_name(tmp_path):
    arch = ARCHS["phi3"]
    leaf = blocks("q5_0", (64, 32))
    leaves = {**params_of(arch), "layers/1/attn/k": leaf}
    with pytest.raises(ValueError, match=r"layers/1/attn/q in F32, layers/1/attn/k in Q5_0.*attn_qkv.weight"):
        qjax.io.export(tmp_path / "m.gguf", Decoder(arch), nest(leaves), to="gguf")
    leaves = {**params_of(ARCHS["qwen2moe"]), "layers/0/ffn/shared_gate": blocks("q5_0", (64, 1))}
    with pytest.raises(ValueError, match=r"layers/0/ffn/shared_gate.*leave it float"):
        qjax.io.export(tmp_path / "m.gguf", Decoder(ARCHS["qwen2moe"]), nest(leaves), to="gguf")
    with pytest.raises(ValueError, match=r"q4_k are 256 long.*llama.cpp takes q5_0"):
        qjax.quantize(jnp.ones((3, 32, 64)), "q4_k", axis=-2, batch_axes=0)
    for family, paths, message in (
        ("gemma2", ("layers/0/ffn/up",), "layers/0/ffn/up: llama.cpp has no place for nvfp4's tensor scale"),
        ("phi3", ("layers/0/attn/q", "layers/0/attn/k", "layers/0/attn/v"), "have tensor scales of their own"),
    ):
        leaves = params_of(ARCHS[family])
        for i, path in enumerate(paths, 2):
            q = blocks("nvfp4", leaves[path].shape)
            inner = dataclasses.replace(q.scales[0], scales=(jnp.full((1, 1), i, jnp.float32),))
            leaves[path] = dataclasses.replace(q, scales=(inner,))
        with pytest.raises(ValueError, match=message):
            qjax.io.export(tmp_path / "m.gguf", Decoder(ARCHS[family]), nest(leaves), to="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gemma2", {"query_scale": 0.1}, "gemma2 has not query_scale=0.1"),
        ("gemma2", {"logit_cap": None}, r"gemma2 has not logit_cap=None \(but 30.0\)"),
        ("gemma2", {"windows": ()}, "gemma2 has not windows=()"),
        ("gemma3", {"score_cap": 9.0}, "gemma3 has not score_cap=9.0"),
        ("gemma3", {"windows": (24, 24, 0, 24, 0, 0, 0)}, "gemma3 has not windows"),
        ("phi3", {"qkv_bias": True}, "phi3 has not qkv_bias=True"),
        ("phi3", {"head_dim": 32, "rotary": 12}, "phi3 has not head_dim=32"),
        ("qwen3moe", {"qk_norm": "width"}, "qk_norm='width'"),
        ("qwen3moe", {"experts": Experts(3, 2, 32, normalized=False)}, r"experts=Experts\(.*normalized=False"),
        ("llama", {"experts": Experts(3, 2, 32, dense=(1,))}, r"llama has not.*dense=\(1,\)"),
        ("llama", {"norm": "layer"}, "llama has not norm='layer'"),
        ("llama", {"rotary": 8}, "llama has not rotary=8"),
        ("qwen2moe", {"tied": True}, "qwen2moe has not tied=True"),
        ("gemma2", {"tied": False}, "gemma2 has not tied=False"),
        ("qwen2moe", {"rope_factors": (1.0,) * 7 + (2.0,)}, "qwen2moe has not rope_factors"),
    ],
)
def test_what_no_architecture_has_is_named(family, fields, message):
    with pytest.raises(ValueError, match=message):
        family_of(dataclasses.replace(ARCHS[family], **fields))


def read(family, changes, arch=None, divisors=None):
    """The architecture in the metadata of one of `ARCHS` with some keys changed, or left out (None)."""
    metadata, factors = metadata_of(family, arch or ARCHS[family])
    metadata = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    return architecture_of(family, metadata, {}, 9, factors if divisors is None else divisors)


def test_metadata_mean_what_they_mean_to_llama_cpp():
    silent = read("gemma2", {"attention.sliding_window": None, "attn_logit_softcapping": None})
    assert (silent.windows, silent.score_cap, silent.window_theta) == ((4096, 0), 50.0, None)
    large = read("gemma2", {"block_count": 46, "attention.head_count": 2, "attention.head_count_kv": 1})
    assert (large.query_scale, large.embed_scale) == (32**-0.5, 8.0)
    assert read("gemma3", {"attention.sliding_window": None}).windows == ()
    assert read("gemma3", {"attention.sliding_window_pattern": 2}).windows == (24, 0, 24, 0, 24, 0, 24)
    assert read("gemma3", {"attention.sliding_window_pattern": [True, False] * 3 + [False]}).windows[4:] == (24, 0, 0)
    assert read("gemma3", {"rope.freq_base_swa": 20.0, "rope.scaling.type": None}).window_theta == 20.0
    assert read("gemma3", {"rope.scaling.type": None}).rope_factors == (8.0,) * 16
    assert read("gemma3", {"rope.scaling.type": "none"}).rope_factors is None
    assert read("qwen3moe", {"expert_feed_forward_length": None}).experts == Experts(3, 2, 48)
    experts = read("qwen2moe", {"expert_shared_feed_forward_length": None}).experts
    assert experts == Experts(3, 2, 32, shared=96, normalized=False)
    assert read("llama", {"attention.head_count_kv": [2, 2]}).kv_heads == 2
    assert read("llama", {"rope.scale_linear": 2.0}).rope_factors == (2.0,) * 8
    divisors = {FREQUENCIES: (1.0,) * 4 + (3.0,) * 4}
    assert read("llama", {"rope.scaling.factor": 2.0}, divisors=divisors).rope_factors == (2.0,) * 4 + (6.0,) * 4
    assert read("phi3", {"attention.sliding_window": 0}).windows == ()
    for pattern in (3, 0, 1):  # what differs from the usual is written, and comes back
        layers = tuple(0 if pattern and i % pattern == pattern - 1 else 24 for i in range(7))
        arch = dataclasses.replace(ARCHS["gemma3"], windows=layers, window_theta=50.0 if any(layers) else None)
        assert read("gemma3", {}, arch) == dataclasses.replace(arch, windows=layers if any(layers) else ())


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"attention.head_count_kv": [2, 1]}, r"head_count_kv is \[2, 1\]: layers of different sizes"),
        ("llama", {"attention.value_length": 8}, "value_length is 8"),
        ("llama", {"expert_used_count": None}, "lacks the key 'llama.expert_used_count'"),
        ("llama", {"rope.scaling.type": "yarn"}, "RoPE scaling 'yarn'"),
        ("llama", {"attention.key_length": 2**30}, "heads of 1073741824"),
        ("gemma2", {"expert_count": 4}, "gemma2 models have no experts"),
        ("qwen3moe", {"rope.dimension_count": 8}, "rope.dimension_count is 8, not all 32 channels"),
        ("gemma3", {"attention.sliding_window_pattern": [True]}, "1 entries for 7 layers"),
        ("phi3", {"rope.scaling.original_context_length": None}, "come together"),
    ],
)
def test_metadata_of_no_decoder_are_named(family, changes, message):
    with pytest.raises(ValueError, match=message):
        read(family, changes)
