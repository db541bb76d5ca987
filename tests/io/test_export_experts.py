"""Mixtures of experts as checkpoints: a module for each expert, named as the clients do, and read back bit for bit."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.io import converting
from qjax.io.tensors import open_tensors, write_tensors
from qjax.models import Architecture, Decoder, Experts, load
from qjax.models.configuration import write_config
from qjax.models.decoder import nest
from qjax.models.safetensors import hf_name
from qjax.operators import Columns, Pre, Quantize
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests.io.checkpoints import WORDS, draw, same

PLAIN = Architecture(vocab=8, width=64, layers=2, heads=4, kv_heads=4, head_dim=16, ffn=64)
ARCHS = {
    "mixtral": replace(PLAIN, ffn=32, experts=Experts(3, 2, 32)),
    "qwen2_moe": replace(
        PLAIN, qkv_bias=True, tied=False, experts=Experts(3, 1, 32, shared=64, normalized=False, dense=(0,))
    ),
    "qwen3_moe": replace(PLAIN, ffn=32, qk_norm="head", experts=Experts(3, 2, 32)),
}
GATES = ("router", "shared_gate")


def parameters(arch):
    random = np.random.default_rng(0)
    return nest({path: jnp.asarray(random.normal(size=shape), jnp.float32) for path, shape in arch.shapes.items()})


def experts(fmt, shape, seed):
    """A leaf of experts of any codes; tensor scales whose reciprocals are exact."""
    qs = [draw(fmt, shape[1:], 10 * seed + i) for i in range(shape[0])]
    if isinstance(qs[0].scales[0], qjax.QArray):
        outer = [(jnp.full((1, 1), 2.0 ** -(5 + i), jnp.float32),) for i in range(len(qs))]
        qs = [replace(q, scales=(replace(q.scales[0], scales=s),)) for q, s in zip(qs, outer, strict=True)]
    return jax.tree.map(lambda *a: jnp.stack(a), *qs)


def quantized(arch, formats, wrap=lambda path, q: q):
    """Parameters with the kernels of all layers quantized, the formats taken by the kernel's name."""
    leaves, found = leaves_with_paths(parameters(arch)), {}
    for i, (path, w) in enumerate(leaves.items()):
        name = path.rpartition("/")[2]
        fmt = formats.get(name, formats["else"])
        if path.startswith("layers/") and w.ndim >= 2 and name not in GATES and fmt is not None:
            found[path] = wrap(path, experts(fmt, w.shape, i) if w.ndim == 3 else draw(fmt, w.shape, i))
    return replace_leaves(parameters(arch), found)


def contents(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in open_tensors(file).items()}


def with_order(path, q):
    """Each expert's inputs in an order of its own, as act-order leaves them; down has but one group."""
    if q.ndim == 2 or path.endswith("down"):
        return q
    orders = [np.random.default_rng(i).permutation(q.shape[-2]).reshape(-1, 32) for i in range(q.shape[0])]
    orders = np.sort(orders, axis=-1).reshape(q.shape[0], -1)  # a file has no order within a group
    return Columns((q,), jnp.asarray(orders, jnp.int32))


def with_inputs(path, q):
    """Rounded as they come, and in front of down in one static range for each expert."""
    if q.ndim == 3 and path.endswith("down"):
        ends = [Quantize.static("fp8_e4m3_tensor", -n, n) for n in (1.0, 2.0, 3.0)]
        return Pre(jax.tree.map(lambda *a: jnp.stack(a), *ends), q)
    return Pre(Quantize.dynamic("fp8_e4m3_token_f32"), q)


CASES = {
    "packed": ("mixtral", "compressed-tensors", {"else": "int4_g32"}, lambda path, q: q),
    "affine, bytes, FP8 and FP4": (
        "qwen2_moe",
        "compressed-tensors",
        {"gate": "nvfp4", "up": "int4_g32_affine", "down": "fp8_e4m3", "q": "int8", "else": "int3_g32"},
        lambda path, q: q,
    ),
    "FP8 on rounded inputs": ("qwen3_moe", "compressed-tensors", {"else": "fp8_e4m3"}, with_inputs),
    "gptq in an order": ("qwen3_moe", "gptq", {"else": "int4_g32_affine_f16"}, with_order),
    "awq": ("qwen2_moe", "awq", {"else": "int4_g32_affine_f16"}, lambda path, q: q),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*tensor scales of their own")
def test_experts_go_out_one_by_one_and_come_back_bit_for_bit(tmp_path, case):
    kind, to, formats, wrap = CASES[case]
    arch = ARCHS[kind]
    params = quantized(arch, formats, wrap)
    qjax.io.export(tmp_path / "m", Decoder(arch), params, to=to, tokenizer=WORDS)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"] == kind
    model, again, _ = load(tmp_path / "m")
    assert model.arch == arch
    same(params, again)
    names = {name for name in contents(tmp_path / "m") if "expert" in name}
    suffix = {"compressed-tensors": "weight_scale", "gptq": "scales", "awq": "scales"}[to]
    prefix = "model.layers.1." + ("block_sparse_moe" if kind == "mixtral" else "mlp")
    three = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    assert {f"{prefix}.experts.{i}.{name}.{suffix}" for i in range(3) for name in three} <= names
    assert f"{prefix}.gate.weight" in contents(tmp_path / "m")  # the router: float, and named so to those who round all
    settings = config["quantization_config"]
    left = {"compressed-tensors": "ignore", "awq": "modules_to_not_convert", "gptq": "dynamic"}[to]
    listed = [re.sub(r"^-:\^|\$$|\\", "", name) for name in settings[left]]
    assert f"{prefix}.gate" in listed
    if case.startswith("affine"):  # by these words transformers and vLLM know which group the experts have
        targets = [target for group in settings["config_groups"].values() for target in group["targets"]]
        own = [target for target in targets if "experts" in target]
        assert sorted(own) == sorted(rf"re:model\.layers\.1\.mlp\.experts\.\d+\.{name}$" for name in three)


def test_float_experts_are_named_to_those_who_round_all(tmp_path):
    params = quantized(ARCHS["mixtral"], {"gate": None, "up": None, "down": None, "else": "int4_g32"})
    for to, key in (("compressed-tensors", "ignore"), ("gptq", "dynamic")):
        qjax.io.export(tmp_path / to, Decoder(ARCHS["mixtral"]), params, to=to, tokenizer=WORDS)
        settings = json.loads((tmp_path / to / "config.json").read_text())["quantization_config"]
        assert len(settings[key]) == 2 * 4 + (to == "compressed-tensors")  # three of experts, a router; the tied head
        same(params, load(tmp_path / to)[1])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A bfloat16 checkpoint of Qwen2-MoE's kind in several shards."""
    folder, arch, tensors = tmp_path_factory.mktemp("source"), ARCHS["qwen2_moe"], {}
    for path, leaf in leaves_with_paths(parameters(arch)).items():
        w = np.asarray(leaf.astype(jnp.bfloat16))
        for i, part in enumerate(w if w.ndim == 3 else [w]):
            name = hf_name(f"{path}[{i}]" if w.ndim == 3 else path, "qwen2_moe")
            tensors[name] = np.ascontiguousarray(part.T if part.ndim == 2 and path != "embed" else part)
    write_tensors(folder, tensors, 40000)
    WORDS.write(folder)
    (folder / "config.json").write_text(json.dumps({**write_config(arch), "torch_dtype": "bfloat16"}))
    return folder


def test_a_conversion_is_what_export_writes(source, tmp_path):
    """Matrix by matrix, an expert at a time; the router and the shared expert's gate stay as they are."""
    with pytest.warns(UserWarning, match="vLLM fuses"):
        converting.convert(source, tmp_path / "a", "nvfp4", shard=40000, progress=False)
    arch = ARCHS["qwen2_moe"]
    leaves = {path: w.astype(jnp.bfloat16) for path, w in leaves_with_paths(parameters(arch)).items()}
    for path, w in leaves.items():
        if path.startswith("layers/") and w.ndim >= 2 and path.rpartition("/")[2] not in GATES:
            leaves[path] = qjax.quantize(w, "nvfp4", batch_axes=w.ndim - 2)
    with pytest.warns(UserWarning, match="vLLM fuses"):
        qjax.io.export(tmp_path / "b", Decoder(arch), replace_leaves(parameters(arch), leaves), to="compressed-tensors")
    ours, theirs = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert ours.keys() == theirs.keys() and len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    for name in ours:
        np.testing.assert_array_equal(ours[name].view(np.uint8), theirs[name].view(np.uint8), err_msg=name)


def test_a_conversion_names_an_expert_that_is_missing(source, tmp_path):
    tensors = contents(source)
    name = "model.layers.1.mlp.experts.1.up_proj.weight"
    for spoiled, message in (
        ({n: t for n, t in tensors.items() if n != name}, "layers/1/ffn/experts/up has 3 experts; .* lacks 1"),
        ({**tensors, name: tensors[name][:, :32]}, r"layers/1/ffn/experts/up\[1\] has shape \(32, 32\)"),
    ):
        folder = tmp_path / message[-5:].strip("\\)")
        folder.mkdir()
        write_tensors(folder, {n: np.ascontiguousarray(t) for n, t in spoiled.items()})
        (folder / "config.json").write_text((source / "config.json").read_text())
        with pytest.raises(ValueError, match=message):
            converting.convert(folder, tmp_path / "out", "int4_g32", progress=False)


def test_what_no_client_opens_is_refused_by_its_leaf(tmp_path):
    arch = ARCHS["mixtral"]
    good = quantized(arch, {"else": "int4_g32"})

    def export(path, leaf, to="compressed-tensors", arch=arch):
        params = good if path is None else replace_leaves(good, {path: leaf})
        qjax.io.export(tmp_path / "m", Decoder(arch), params, to=to)

    for path, leaf, options, message in (
        ("layers/1/ffn/router", draw("int8", (64, 3)), {}, "layers/1/ffn/router: .* leave it float"),
        ("layers/0/ffn/experts/up", experts("nf4_g64", (3, 64, 32), 0), {}, r"layers/0/ffn/experts/up\[0\]: nf4"),
        ("layers/0/ffn/experts/up", experts("int8", (3, 64, 32), 0), {"to": "gptq"}, "one width and group"),
        (None, None, {"arch": replace(arch, score_cap=2.0)}, "score_cap=2.0, .* 'mixtral'; qjax.io.save"),
    ):
        with pytest.raises(ValueError, match=message):
            export(path, leaf, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"qkv_bias": True, "o_bias": True}),
        ("mistral", {"windows": (5,)}),
        ("qwen2", {"qkv_bias": True, "windows": (0, 5)}),
        ("qwen3", {"qk_norm": "head"}),
        ("olmo2", {"placement": "post", "qk_norm": "width"}),
        ("qwen3_moe", {"qk_norm": "head", "experts": Experts(3, 1, 32, normalized=False, dense=(1,))}),
    ],
)
def test_the_family_that_is_written_is_one_that_says_the_architecture(kind, changes):
    config = write_config(replace(PLAIN, **changes))
    assert config["model_type"] == kind and config["architectures"][0].endswith("ForCausalLM")
