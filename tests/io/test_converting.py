"""A checkpoint converted file by file is the one that `export` writes, whole or after an interruption."""

from __future__ import annotations

import contextlib
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import qjax
from qjax.io import converting
from qjax.io.tensors import open_tensors, write_tensors
from qjax.models import load
from qjax.models.configuration import write_config
from qjax.models.safetensors import hf_name
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests.io.checkpoints import ARCH, MODEL, WORDS, parameters, same

SHARD = 40000


@pytest.fixture(scope="module")
def params():
    leaves = leaves_with_paths(parameters())
    return replace_leaves(parameters(), {path: w.astype(jnp.bfloat16) for path, w in leaves.items()})


@pytest.fixture(scope="module")
def source(params, tmp_path_factory):
    """A bfloat16 checkpoint in several shards, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("source")
    tensors = {}
    for path, w in leaves_with_paths(params).items():
        w = np.asarray(w)
        tensors[hf_name(path)] = np.ascontiguousarray(w.T if w.ndim == 2 and path != "embed" else w)
    write_tensors(folder, tensors, SHARD)
    WORDS.write(folder)
    config = {**write_config(ARCH), "torch_dtype": "bfloat16", "bos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(folder):
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in open_tensors(file).items()}


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name].view(np.uint8), b[name].view(np.uint8), err_msg=name)


def mixed(path):
    return {"q": "int4_g32_affine", "down": "fp8_e4m3", "up": "nvfp4", "head": None}.get(
        path.rpartition("/")[2], "int4_g32"
    )


@pytest.mark.parametrize(("fmt", "to"), [("int4_g32", "gptq"), (mixed, "compressed-tensors")])
def test_it_is_what_export_writes(source, params, tmp_path, fmt, to):
    fuses = pytest.warns(UserWarning, match="vLLM fuses") if callable(fmt) else contextlib.nullcontext()
    with fuses:
        converting.convert(source, tmp_path / "a", fmt, to=to, shard=SHARD, progress=False)
    leaves = leaves_with_paths(params)
    chosen = {
        p: mixed(p) if callable(fmt) else fmt for p, w in leaves.items() if p.startswith("layers/") and w.ndim == 2
    }
    tree = replace_leaves(params, {p: qjax.quantize(leaves[p], f) for p, f in chosen.items()})
    qjax.io.export(tmp_path / "b", MODEL, tree, to=to, tokenizer=WORDS)
    equal(contents(tmp_path / "a"), contents(tmp_path / "b"))
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert ours["quantization_config"] == theirs["quantization_config"] and ours["dtype"] == theirs["dtype"]
    assert "torch_dtype" not in ours
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    same(load(tmp_path / "a")[1], load(tmp_path / "b")[1])


def test_an_interrupted_conversion_goes_on(source, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    converting.convert(source, whole, "int4_g32", shard=SHARD, progress=False)
    write, calls = converting.save_file, []

    def dies(tensors, file, metadata):
        if len(calls) == 2:
            file.write_bytes(b"half a file")
            raise KeyboardInterrupt
        calls.append(file.name)
        write(tensors, file, metadata=metadata)

    monkeypatch.setattr(converting, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        converting.convert(source, tmp_path / "m", "int4_g32", shard=SHARD, progress=False)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="left by a conversion with other settings"):
        converting.convert(source, tmp_path / "m", "int4_g32_affine", shard=SHARD, progress=False)
    left = []
    monkeypatch.setattr(converting, "save_file", lambda t, f, metadata: (left.append(f.name), write(t, f, metadata)))
    converting.convert(source, tmp_path / "m", "int4_g32", shard=SHARD, progress=False)
    assert not set(calls) & set(left) and len(calls) + len(left) == len(list(whole.glob("*.safetensors")))
    files = {file.name: file.read_bytes() for file in whole.iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "m").iterdir()} == files
    assert list(tmp_path.glob(".*")) == []


def test_what_cannot_be_converted_is_refused(source, tmp_path):
    def convert(fmt="int4_g32", folder=source, target="m", **options):
        converting.convert(folder, tmp_path / target, fmt, progress=False, **options)

    with pytest.raises(ValueError, match="'gguf' is no container that is written file by file"):
        convert(to="gguf")
    with pytest.raises(ValueError, match="layers/0/attn/k: its blocks of"):
        convert("int4_g128")
    with pytest.raises(ValueError, match="no parameter is quantized"):
        convert(lambda path: None)
    assert list(tmp_path.iterdir()) == []
    convert()
    with pytest.raises(FileExistsError, match="exists; remove it"):
        convert()
    with pytest.raises(ValueError, match="quantized already; give the float checkpoint"):
        convert(folder=tmp_path / "m", target="n")


def test_a_matrix_is_read_by_itself(source):
    config = json.loads((source / "config.json").read_text())
    from qjax.models.safetensors import places

    found = places(source, ARCH, config)
    w = found["layers/1/ffn/down"]
    assert w.shape == (96, 64) and w.dtype == ml_dtypes.bfloat16
    assert w.read().shape == w.shape and w.read().base.flags.owndata
