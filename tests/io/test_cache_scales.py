"""Static scales of keys and values: out as compressed-tensors' kv_cache_scheme, and in again."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qjax
from qjax.models import load
from qjax.operators import PerHead, Quantize
from tests.io.checkpoints import MODEL, WORDS, draw, parameters, same

KERNELS = [path for path, shape in MODEL.arch.shapes.items() if path.startswith("layers/") and len(shape) == 2]
SITES = [f"layers/{i}/attn/{name}" for i in range(2) for name in ("key", "value")]
# Powers of two times the largest value: the scales are exact in any float, and all differ.
FP8 = {site: Quantize.static("fp8_e4m3_tensor", -448.0 * 2.0**-i, 448.0 * 2.0**-i) for i, site in enumerate(SITES, 3)}


HEADS = {
    site: PerHead.static("fp8_e4m3_tensor", *(sign * 448.0 * 2.0 ** -np.arange(i, i + 4.0) for sign in (-1, 1)))
    for i, site in enumerate(SITES)
}


def program(taps):
    leaves = qjax.trace.paths.leaves_with_paths(params := parameters())
    drawn = {path: draw("int4_g32", leaves[path].shape, i) for i, path in enumerate(KERNELS)}
    return qjax.Program(qjax.trace.paths.replace_leaves(params, drawn), taps)


def test_scales_go_out_and_come_back(tmp_path):
    given = program(FP8)
    qjax.io.export(tmp_path / "m", MODEL, given, to="compressed-tensors", tokenizer=WORDS)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    wanted = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    assert settings == {**wanted, "group_size": None}
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    names = [f"model.layers.{i}.self_attn.{name}_scale" for i in range(2) for name in "kv"]
    assert [float(tensors[name].item()) for name in names] == [2.0**-i for i in range(3, 7)]
    _, found, _ = load(tmp_path / "m")
    assert isinstance(found, qjax.Program) and list(found.taps) == SITES
    same(found.params, given.params)
    x = np.random.default_rng(0).normal(scale=30, size=(2, 5, 4, 16)).astype(np.float32)
    for site, tap in FP8.items():
        np.testing.assert_array_equal(found.taps[site].apply(x), tap.apply(x))


def test_scales_of_heads_go_out_and_come_back(tmp_path):
    """As compressed-tensors lays them, [heads, 1, 1]; and each head is rounded by its own."""
    given = program(HEADS)
    qjax.io.export(tmp_path / "m", MODEL, given, to="compressed-tensors", tokenizer=WORDS)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (settings["strategy"], settings["dynamic"]) == ("attn_head", False)
    tensor = load_file(tmp_path / "m" / "model.safetensors")["model.layers.0.self_attn.v_scale"]
    assert tensor.shape == (4, 1, 1) and tensor.reshape(-1).tolist() == [2.0**-i for i in range(1, 5)]
    _, found, _ = load(tmp_path / "m")
    assert list(found.taps) == SITES
    x = np.random.default_rng(0).normal(scale=30, size=(2, 5, 4, 16)).astype(np.float32)
    for site, tap in HEADS.items():
        alone = [Quantize(tap.rounding.format, jax.tree.map(lambda a, h=h: a[h], tap.rounding.grid)) for h in range(4)]
        wanted = np.stack([one.apply(x[:, :, h]) for h, one in enumerate(alone)], axis=2)
        np.testing.assert_array_equal(tap.apply(x), wanted)
        np.testing.assert_array_equal(found.taps[site].apply(x), wanted)
    with pytest.raises(ValueError, match=r"4 scales; \(2, 5, 2, 16\) is not"):
        tap.apply(x[:, :, :2])


def test_groups_of_channels_need_no_scales(tmp_path):
    given = program(dict.fromkeys(SITES, Quantize.dynamic("int8_g8_f32")))
    qjax.io.export(tmp_path / "m", MODEL, given, to="compressed-tensors", tokenizer=WORDS)
    settings = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert (settings["strategy"], settings["group_size"], settings["dynamic"]) == ("group", 8, True)
    assert not any(name.endswith(("k_scale", "v_scale")) for name in load_file(tmp_path / "m" / "model.safetensors"))
    _, found, _ = load(tmp_path / "m")
    assert {site: tap.format for site, tap in found.taps.items()} == {s: t.format for s, t in given.taps.items()}


def test_globs_name_every_layer_and_the_program_runs(tmp_path):
    taps = {f"*/attn/{name}": Quantize.static("int8_tensor", -1.0, 1.0) for name in ("key", "value")}
    given, tokens = program(taps), np.arange(6, dtype=np.int32)[None]
    qjax.io.export(tmp_path / "m", MODEL, given, to="compressed-tensors", tokenizer=WORDS)
    model, found, _ = load(tmp_path / "m")
    logits = jax.jit(qjax.tapped(model))(found, tokens)
    np.testing.assert_allclose(logits, jax.jit(qjax.tapped(MODEL))(given, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("taps", "to", "message"),
    [
        ({**FP8, "layers/0/attn/query": FP8[SITES[0]]}, "compressed-tensors", "layers/0/attn/query: no checkpoint"),
        ({site: FP8[site] for site in SITES[:3]}, "compressed-tensors", "layers/1/attn/value: no tap"),
        ({**FP8, SITES[1]: Quantize.static("int8_tensor", -1.0, 1.0)}, "compressed-tensors", "layers/0/attn/value"),
        (dict.fromkeys(SITES, Quantize.dynamic("int8")), "compressed-tensors", "layers/0/attn/key: its tap"),
        (dict.fromkeys(SITES, Quantize.dynamic("int8_g32_f32")), "compressed-tensors", "layers/0/attn/key: its tap"),
        ({**HEADS, SITES[3]: FP8[SITES[3]]}, "compressed-tensors", "layers/1/attn/value: its tap"),
        (
            dict.fromkeys(SITES, PerHead.static("int8_tensor", [-1, -1], [1, 1])),
            "compressed-tensors",
            "layers/0/attn/key: its tap",
        ),
        ({**FP8, "*/attn/key": FP8[SITES[0]]}, "compressed-tensors", "layers/0/attn/key: its tap"),
        (FP8, "gptq", "taps on layers/0/attn/key"),
        (FP8, "gguf", "taps on layers/0/attn/key"),
    ],
)
def test_taps_that_no_checkpoint_holds_are_refused(tmp_path, taps, to, message):
    with pytest.raises(ValueError, match=message):
        qjax.io.export(tmp_path / "m", MODEL, program(taps), to=to)
    assert not (tmp_path / "m").exists()


NAME = "model.layers.1.self_attn.v_scale"


@pytest.mark.parametrize(
    ("scheme", "scales", "message"),
    [
        ({}, {NAME: None}, "layers/1/attn/v_scale"),
        ({}, {NAME: np.array([np.nan], np.float32)}, "one positive scale"),
        ({}, {NAME: np.ones(2, np.float32)}, "one positive scale"),
        ({}, {"model.layers.7.self_attn.v_scale": np.ones(1, np.float32)}, "layers/7/attn/v_scale"),
        ({"dynamic": True, "strategy": "token"}, {}, "kv_cache_scheme"),
        ({"symmetric": False}, {}, "kv_cache_scheme"),
        ({"dynamic": True, "strategy": "group", "group_size": 8}, {}, "k_scale; its scheme is by group"),
        ({"strategy": "attn_head"}, {}, "layers/0/attn/k_scale: its scheme wants a positive scale for each of 4 heads"),
        ({"num_bits": 4}, {}, "kv_cache_scheme"),
    ],
)
def test_schemes_and_scales_that_do_not_fit_are_refused(tmp_path, scheme, scales, message):
    folder = tmp_path / "m"
    qjax.io.export(folder, MODEL, program(FP8), to="compressed-tensors", tokenizer=WORDS)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] |= scheme
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {**load_file(folder / "model.safetensors"), **scales}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(folder)
