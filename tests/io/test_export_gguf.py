"""GGUF files we write, opened by the gguf package's reader and by our own."""

from __future__ import annotations

from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import qjax
from qjax import ggml
from qjax.io.gguf import blocks as blocks_of
from qjax.models import Architecture, Decoder, Tokenizer, load
from qjax.models.decoder import nest
from qjax.models.tokenizer import words
from qjax.trace.paths import leaves_with_paths, replace_leaves

ARCH = Architecture(
    vocab=12, width=64, layers=1, heads=4, kv_heads=4, head_dim=16, ffn=64, tied=False, qkv_bias=True, eps=2.0**-17
)
MODEL = Decoder(ARCH)
TYPES = {
    "attn/q": "q4_0",
    "attn/k": "q5_1",
    "attn/v": "q4_1",
    "attn/o": "q8_0",
    "ffn/gate": "mxfp4",
    "ffn/up": "q5_0",
}
NAMES = {"attn/q": "attn_q", "attn/k": "attn_k", "attn/v": "attn_v", "attn/o": "attn_output"}
NAMES |= {"ffn/gate": "ffn_gate", "ffn/up": "ffn_up", "ffn/down": "ffn_down"}


def blocks(kind, seed):
    """A matrix [64, 64] of any codes under scales (and minima) that are numbers."""
    size, random = ggml.TYPES[kind].nbytes, np.random.default_rng(seed)
    data = random.integers(0, 256, (64, 2, size), dtype=np.uint8)
    if kind == "mxfp4":
        data[..., 0] = random.integers(110, 130, (64, 2))
    else:
        halves = random.normal(size=(64, 2, 2)).astype(np.float16)
        data[..., :4] = halves.view(np.uint8) if kind.endswith("1") else data[..., :4]
        data[..., :2] = halves[..., :1].view(np.uint8)
    return ggml.from_bytes(jnp.asarray(data.reshape(64, -1)), kind)


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    leaves = {path: jnp.asarray(random.normal(size=shape), jnp.float32) for path, shape in ARCH.shapes.items()}
    return nest(leaves)


@pytest.fixture(scope="module")
def tokenizer():
    vocab = {token: i for i, token in enumerate(["<s>", "a", "b", "Ġ", "ab", "1", "2", "Ċ", "<user>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("a", "b")]))
    backend.pre_tokenizer = words("smollm")
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken("<s>", special=True)])
    backend.add_tokens([tokenizers.AddedToken("<user>")])
    return Tokenizer(backend, bos=0, eos=0)


@pytest.fixture(scope="module")
def tree(params):
    qs = {f"layers/0/{path}": blocks(kind, i) for i, (path, kind) in enumerate(TYPES.items())}
    # One of ours, whose scales float16 holds: codes of int4 in blocks of 32 are those of Q4_0.
    q = qs["layers/0/attn/q"]
    scale = q.scales[0].astype(jnp.bfloat16)
    qs["layers/0/ffn/down"] = replace(q, scales=(scale,), meta=replace(q.meta, element=qjax.as_format("int4").element))
    return replace_leaves(params, qs)


@pytest.fixture(scope="module")
def file(tree, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    qjax.io.export(path, MODEL, tree, to="gguf", tokenizer=tokenizer)
    return path


def test_the_gguf_package_decodes_our_numbers(file, tree):
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}
    leaves = leaves_with_paths(tree)
    for path, name in NAMES.items():
        tensor = found[f"blk.0.{name}.weight"]
        assert tensor.tensor_type.name == TYPES.get(path, "q4_0").upper()
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if path in ("attn/q", "attn/k"):  # x0 x8 x1 x9 ... in the file, x0 x1 ... x15 here
            w = w[[16 * h + 2 * (i % 8) + i // 8 for h in range(4) for i in range(16)]]
        np.testing.assert_array_equal(w.T, qjax.dequantize(leaves[f"layers/0/{path}"]), err_msg=path)
    bias = found["blk.0.attn_k.bias"].data[[16 * h + 2 * (i % 8) + i // 8 for h in range(4) for i in range(16)]]
    np.testing.assert_array_equal(bias, leaves["layers/0/attn/k_bias"])
    np.testing.assert_array_equal(found["token_embd.weight"].data, leaves["embed"])
    np.testing.assert_array_equal(found["output.weight"].data.T, leaves["head"])


def test_our_loader_gives_the_blocks_back(file, tree, tokenizer):
    model, again, words = load(file, quantized=True)
    assert model.arch == ARCH
    ours, theirs = leaves_with_paths(tree), leaves_with_paths(again)
    down = ours["layers/0/ffn/down"]
    ours["layers/0/ffn/down"] = replace(down, scales=(down.scales[0].astype(jnp.float16),))
    for path, node in ours.items():
        assert jax.tree.structure(node) == jax.tree.structure(theirs[path])
        for a, b in zip(jax.tree.leaves(node), jax.tree.leaves(theirs[path]), strict=True):
            assert a.dtype == b.dtype, path
            np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8), err_msg=path)
    text = "ab12<user> \n<s>"
    np.testing.assert_array_equal(words.encode(text), tokenizer.encode(text))
    assert (words.bos, words.eos, words.pad, words.vocab) == (0, 0, None, 12)


def test_floats_keep_their_width(params, tmp_path):
    half = {**params, "embed": params["embed"].astype(jnp.bfloat16), "head": params["head"].astype(jnp.float16)}
    arch = replace(ARCH, rope_factors=(2.0,) * 8)
    qjax.io.export(tmp_path / "m.gguf", Decoder(arch), half, to="gguf")
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert [found[name].tensor_type.name for name in ("token_embd.weight", "output.weight")] == ["BF16", "F16"]
    w = gguf.quants.dequantize(found["token_embd.weight"].data, found["token_embd.weight"].tensor_type)
    np.testing.assert_array_equal(w, half["embed"].astype(jnp.float32))
    np.testing.assert_array_equal(found["rope_freqs.weight"].data, np.full(8, 2, np.float32))


@pytest.mark.parametrize("kind", ["q4_k", "tq1_0", "iq4_nl"])
def test_the_other_types_keep_their_bytes(kind):
    data = np.zeros((4, ggml.TYPES[kind].nbytes), np.uint8) if kind == "tq1_0" else None
    data = np.random.default_rng(0).integers(0, 256, (4, ggml.TYPES[kind].nbytes), np.uint8) if data is None else data
    rows, found, _ = blocks_of("w", ggml.from_bytes(jnp.asarray(data), kind))
    np.testing.assert_array_equal(rows, data)
    assert found.name == kind.upper()


def test_narrow_codes_are_codes(tree):
    q = leaves_with_paths(tree)["layers/0/ffn/down"]
    narrow = replace(q, codes=jnp.maximum(q.codes, jnp.int8(-7)))
    narrow = replace(narrow, meta=replace(q.meta, element=qjax.as_format("int4_narrow").element))
    rows, found, _ = blocks_of("w", narrow)
    np.testing.assert_array_equal(gguf.quants.dequantize(rows, found).T, qjax.dequantize(narrow))


def test_what_has_no_block_is_refused(tree, tokenizer, tmp_path):
    q = leaves_with_paths(tree)["layers/0/ffn/down"]
    plain = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))
    third = replace(q, scales=(jnp.full((2, 64), 1 / 3, jnp.float32),))
    sideways = qjax.transpose(q)
    wide = replace(q, scales=(q.scales[0][:1],), meta=replace(q.meta, block=(64, 1)))
    for node, options, message in (
        (third, {}, "layers/0/attn/o in a GGUF block: 0.3333"),
        (sideways, {}, "layers/0/attn/o: its blocks lie along the outputs"),
        (wide, {}, "layers/0/attn/o: ggml has no block type of int4 in blocks of .64, 1"),
        (qjax.Columns((q,), jnp.arange(64, dtype=jnp.int32)), {}, "layers/0/attn/o: GGUF keeps neither"),
        (qjax.Sum((q, q)), {}, "layers/0/attn/o: Sum is applied"),
        (q, {"layout": "q4_0"}, "layout='q4_0'"),
        (q, {"tokenizer": plain}, "byte-level BPE"),
    ):
        with pytest.raises(ValueError, match=message):
            qjax.io.export(tmp_path / "m", MODEL, replace_leaves(tree, {"layers/0/attn/o": node}), to="gguf", **options)
    small = Decoder(replace(ARCH, vocab=4))
    cut = {**tree, "embed": tree["embed"][:4], "head": tree["head"][:, :4]}
    with pytest.raises(ValueError, match="an id 8, the model a vocabulary of 4"):
        qjax.io.export(tmp_path / "m", small, cut, to="gguf", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []
