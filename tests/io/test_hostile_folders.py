"""Folders that are not what they say: a clear error each, whatever was changed."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from safetensors.numpy import save_file

import qjax
from qjax.io.tensors import open_tensors
from qjax.models import load
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests.io.checkpoints import MODEL, WORDS, draw, parameters


@pytest.fixture(scope="module")
def params():
    return parameters()


Q = "model.layers.0.self_attn.q_proj."
HOSTILE = {
    "method": ({"quant_method": "aqlm"}, None, "'aqlm' cannot be read"),
    "groups": ({"config_groups": ["W4A16"]}, None, "config_groups"),
    "cache": ({"kv_cache_scheme": {"num_bits": 8}}, None, "kv_cache_scheme"),
    "rotations": ({"transform_config": {"config_groups": {"u": {}}}}, None, "transform_config"),
    "format": ({"format": "marlin-24"}, None, "'marlin-24' is none of"),
    "pattern": ({"ignore": ["re:("]}, None, "malformed"),
    "tied": ({"ignore": []}, lambda t: t.update({"lm_head.weight_scale": t[Q + "weight_scale"]}), "lm_head lacks"),
    "bits": (("weights", {"num_bits": 9}), None, "holds no int of 9 bits"),
    "strategy": (("weights", {"strategy": "attn_head"}), None, "'attn_head'"),
    "group": (("weights", {"group_size": 16}), None, "weight_scale has shape"),
    "symmetry": (("weights", {"symmetric": False}), None, "lacks weight_zero_point"),
    "inputs": (("input_activations", {"num_bits": 8, "dynamic": False}), None, "input_activations"),
    "static": (("input_activations", {"strategy": "tensor", "dynamic": False}), None, "one positive input_scale"),
    "division": (("weights", {"group_size": 40}), None, "blocks of .40, 1. .* do not divide"),
    "a missing tensor": ({}, lambda t: t.pop(Q + "weight_scale"), "lacks weight_scale"),
    "an unknown tensor": ({}, lambda t: t.update({Q + "weight_g_idx": np.zeros(64, np.int32)}), "weight_g_idx"),
    "a wrong shape": ({}, lambda t: t.update({Q + "weight_packed": t[Q + "weight_packed"][:, 1:].copy()}), "has shape"),
    "a wrong dtype": ({}, lambda t: t.update({Q + "weight_packed": np.zeros((64, 8), np.int64)}), "is int64"),
    "a wrong size": ({}, lambda t: t.update({Q + "weight_shape": np.array([1, 1])}), "weight_shape is"),
    "no number": ({}, lambda t: t.update({Q + "weight_scale": np.full((64, 2), np.nan, np.float32)}), "not finite"),
    "no such layer": ({}, lambda t: t.update({Q.replace("0", "7") + "bits": t[Q + "weight_shape"]}), "layers/7"),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(params, tmp_path_factory):
    """Settings and tensors of a checkpoint to be tampered with."""
    path = tmp_path_factory.mktemp("small") / "m"
    leaves = leaves_with_paths(params)
    kernels = [p for p, w in leaves.items() if w.ndim == 2 and "/" in p]
    qparams = replace_leaves(params, {p: draw("int4_g32", leaves[p].shape) for p in kernels})
    qjax.io.export(path, MODEL, qparams, to="compressed-tensors", tokenizer=WORDS)
    return path


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE)
def test_hostile_folders_are_refused(small, tmp_path, case):
    change, tamper, message = case
    config = json.loads((small / "config.json").read_text())
    if isinstance(change, tuple):
        group = config["quantization_config"]["config_groups"]["group_0"]
        group[change[0]] = (group[change[0]] or {}) | change[1]
    else:
        config["quantization_config"] |= change
    if "format" in change:
        config["quantization_config"]["config_groups"]["group_0"].pop("format")
    tensors = {name: np.array(tensor) for name, tensor in open_tensors(small / "model.safetensors").items()}
    if tamper is not None:
        tamper(tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    WORDS.write(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.fixture(scope="module")
def changed(small):
    """A copy of the folder whose settings may be written over."""
    return pathlib.Path(shutil.copytree(small, small.parent / "changed"))


def places(node, path=()):
    """The path of everything inside a JSON value."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


JUNK = [None, True, -1, 0, 1, 3, 2**40, 1e30, float("nan"), "", "x", "re:(", "../x", [], [1], {}, {"a": 1}, "group"]


@hypothesis.settings(max_examples=25)
@hypothesis.given(data=strategies.data())
def test_settings_of_any_structure_are_read_or_refused(small, changed, data):
    config = json.loads((small / "config.json").read_text())
    path = data.draw(strategies.sampled_from(sorted(places(config), key=str)))
    node = config
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(strategies.sampled_from(JUNK))
    (changed / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(ValueError):
        load(changed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "gptq", "bits": 5, "group_size": 32}, "bits=5"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:q": {"bits": 8}}}, "dynamic"),
        ({"quant_method": "gptq", "bits": 4}, "malformed.*group_size"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "'gemv'"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size=0"),
    ],
)
def test_gptq_and_awq_settings_that_are_refused(small, tmp_path, config, message):
    folder_config = json.loads((small / "config.json").read_text()) | {"quantization_config": config}
    (tmp_path / "config.json").write_text(json.dumps(folder_config))
    WORDS.write(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_group_index_that_makes_no_blocks_is_refused(params, tmp_path):
    name = "model.layers.0.self_attn.q_proj.g_idx"
    leaves = leaves_with_paths(params)
    kernels = [p for p, w in leaves.items() if w.ndim == 2 and "/" in p]
    tree = replace_leaves(params, {p: draw("int4_g32_f16", leaves[p].shape) for p in kernels})
    qjax.io.export(tmp_path / "m", MODEL, tree, to="gptq", tokenizer=WORDS)
    tensors = {k: np.array(v) for k, v in open_tensors(tmp_path / "m" / "model.safetensors").items()}
    tensors[name][5] = 1
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match="g_idx does not put 32 inputs"):
        load(tmp_path / "m")
