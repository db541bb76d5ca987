from __future__ import annotations

import dataclasses
import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import ggml
from qjax.models import Architecture, Decoder, cells, find, load
from qjax.models.gguf import open_gguf, read_architecture, read_parameters

ARCH = Architecture(
    vocab=9, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, eps=1e-6, theta=500.0, tied=False
)
TOKENS = ["<end>", "a", "b", "Ġ", "ab", "1", "2", "Ċ", "<user>"]
TO_GGUF = {
    "attn/q": "attn_q",
    "attn/k": "attn_k",
    "attn/v": "attn_v",
    "attn/o": "attn_output",
    "ffn/gate": "ffn_gate",
    "ffn/up": "ffn_up",
    "ffn/down": "ffn_down",
    "attn_norm/scale": "attn_norm",
    "ffn_norm/scale": "ffn_norm",
    "attn/q_norm/scale": "attn_q_norm",
    "attn/k_norm/scale": "attn_k_norm",
}
QWEN = {
    "qwen2": dataclasses.replace(ARCH, qkv_bias=True, tied=True),
    "qwen3": dataclasses.replace(ARCH, head_dim=32, qk_norm="head"),
}


def permute(w, heads):
    """What llama.cpp's converter does to the rows of q and k (convert_hf_to_gguf.py)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write(path, weights, *, kind=None, drop=(), family="llama", splitter="smollm"):
    """A file of random weights as llama.cpp would write it; `kind` is the type of the matrices."""
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(ARCH.layers)
    writer.add_context_length(128)
    writer.add_embedding_length(ARCH.width)
    writer.add_feed_forward_length(ARCH.ffn)
    writer.add_head_count(ARCH.heads)
    writer.add_head_count_kv(ARCH.kv_heads)
    if family == "qwen3":
        writer.add_key_length(QWEN["qwen3"].head_dim)
    writer.add_rope_freq_base(ARCH.theta)
    writer.add_layer_norm_rms_eps(ARCH.eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 1, 1, 1, 1, 1, 1, 1, 4])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)

    def add(name, w, quantize=True):
        if name in drop:
            return
        if kind is None or w.ndim == 1 or not quantize:
            writer.add_tensor(name, np.ascontiguousarray(w, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(w), kind), raw_dtype=kind)

    for path_, w in weights.items():
        if path_ == "embed":
            add("token_embd.weight", w, quantize=False)
        elif path_ == "head":
            add("output.weight", w.T, quantize=False)
        elif path_ == "norm/scale":
            add("output_norm.weight", w)
        else:
            layer, local = path_.removeprefix("layers/").split("/", 1)
            stored = w.T if w.ndim == 2 else w
            heads = {"attn/q": ARCH.heads, "attn/k": ARCH.kv_heads}.get(local) if family == "llama" else None
            suffix, local = "bias" if local.endswith("_bias") else "weight", local.removesuffix("_bias")
            add(f"blk.{layer}.{TO_GGUF[local]}.{suffix}", stored if heads is None else permute(stored, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    return {path: random.normal(size=shape).astype(np.float32) for path, shape in ARCH.shapes.items()}


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def test_float_file_gives_back_the_weights(tmp_path, weights):
    write(tmp_path / "m.gguf", weights)
    model, params, tokenizer = load(tmp_path / "m.gguf")
    assert model == Decoder(Architecture(**{**ARCH.__dict__, "context": 128, "eps": model.arch.eps}))
    assert model.arch.eps == pytest.approx(ARCH.eps, rel=1e-6)
    found = flat(params)
    assert found.keys() == weights.keys()
    for path, w in weights.items():
        np.testing.assert_array_equal(found[path], w, err_msg=path)
    assert tokenizer.encode("ab12<user> <end>").tolist() == [4, 5, 6, 8, 3, 0]
    assert tokenizer.eos == 0
    assert tokenizer.decode([4, 0], special=False) == "ab"


@pytest.mark.parametrize("family", QWEN)
def test_qwen_files_keep_the_order_of_their_rows(tmp_path, family):
    """Biases in Qwen2, norms of heads in Qwen3, and digits one by one behind a letter's word in both."""
    random, arch = np.random.default_rng(0), QWEN[family]
    weights = {path: random.normal(size=shape).astype(np.float32) for path, shape in arch.shapes.items()}
    write(tmp_path / "m.gguf", weights, family=family, splitter="qwen2")
    model, params, tokenizer = load(tmp_path / "m.gguf")
    assert model.arch == dataclasses.replace(arch, context=128, eps=model.arch.eps)
    found = flat(params)
    assert found.keys() == weights.keys()
    for path, w in weights.items():
        np.testing.assert_array_equal(found[path], w, err_msg=path)
    assert tokenizer.encode("ab12<user> a<end>").tolist() == [4, 5, 6, 8, 3, 1, 0]
    assert np.isfinite(model(params, jnp.asarray([[4, 5, 6]]))).all()
    write(tmp_path / "q.gguf", weights, family=family, kind=gguf.GGMLQuantizationType.Q8_0)
    assert same_values(load(tmp_path / "q.gguf", quantized=True)[1], load(tmp_path / "q.gguf")[1]) == 14


def test_a_norm_that_the_architecture_has_not_is_named(tmp_path, weights):
    write(tmp_path / "m.gguf", {**weights, "layers/0/attn/q_norm/scale": np.ones(16, np.float32)})
    with pytest.raises(ValueError, match="does not know: layers/0/attn/q_norm/scale"):
        load(tmp_path / "m.gguf")


def test_cells_are_the_spacing_of_the_grid(tmp_path, weights):
    """Weights of one block differ by whole numbers of cells, at most 15 of them."""
    write(tmp_path / "m.gguf", weights, kind=gguf.GGMLQuantizationType.Q4_1)
    reader = open_gguf(tmp_path / "m.gguf")
    params = flat(read_parameters(reader, read_architecture(reader)))
    spacing = cells(tmp_path / "m.gguf")
    assert spacing.keys() == {path for path, w in weights.items() if w.ndim == 2 and path not in ("embed", "head")}
    for path, d in spacing.items():
        w = params[path].reshape(-1, 32, params[path].shape[1])
        steps = (w - w.min(axis=1, keepdims=True)) / np.asarray(d)[:, None]
        np.testing.assert_allclose(steps, np.round(steps), atol=2e-3, err_msg=path)
        assert 14.5 < steps.max() < 15.5
        # The original lay within half a cell.
        original = weights[path].reshape(w.shape)
        assert (np.abs(original - w) <= 0.51 * np.asarray(d)[:, None] + 2e-3).all(), path


def is_quantized(leaf):
    return isinstance(leaf, qjax.QArray)


def same_values(quantized, params):
    """The same tree, quantized leaves standing for the very same bits; gives how many those are."""
    pairs = list(zip(jax.tree.leaves(quantized, is_leaf=is_quantized), jax.tree.leaves(params), strict=True))
    assert jax.tree.structure(quantized, is_leaf=is_quantized) == jax.tree.structure(params)
    for ours, theirs in pairs:
        ours = qjax.dequantize(ours) if is_quantized(ours) else ours
        np.testing.assert_array_equal(np.asarray(ours).view(np.uint32), np.asarray(theirs).view(np.uint32))
    return sum(is_quantized(ours) for ours, _ in pairs)


def test_blocks_stay_as_they_are(tmp_path, weights):
    """Of every matrix, with the rows of q and k in our order; and the model runs on them."""
    write(tmp_path / "m.gguf", weights, kind=gguf.GGMLQuantizationType.Q4_1)
    model, params, _ = load(tmp_path / "m.gguf")
    _, quantized, _ = load(tmp_path / "m.gguf", quantized=True)
    assert same_values(quantized, params) == 14
    assert ggml.type_of(quantized["layers"]["1"]["attn"]["q"]).name == "q4_1"
    tokens = jnp.asarray([[4, 5, 6, 8, 3]])
    logits = qjax.quantized(model, strict=True)(quantized, tokens)
    np.testing.assert_allclose(logits, model(params, tokens), rtol=1e-4, atol=1e-4)


def test_a_type_without_a_quantized_array_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("output.weight", np.zeros((9, 136), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ4_XS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"output.weight is IQ4_XS.*quantized=False"):
        read_parameters(open_gguf(tmp_path / "m.gguf"), ARCH, quantized=True)


def test_a_missing_tensor_is_named(tmp_path, weights):
    write(tmp_path / "m.gguf", weights, drop=["blk.1.ffn_up.weight"])
    with pytest.raises(ValueError, match="lacks layers/1/ffn/up"):
        load(tmp_path / "m.gguf")


def test_a_wrong_shape_is_named(tmp_path, weights):
    write(tmp_path / "m.gguf", {**weights, "layers/0/attn/v": np.zeros((64, 16), np.float32)})
    with pytest.raises(ValueError, match=r"layers/0/attn/v has shape \(64, 16\)"):
        load(tmp_path / "m.gguf")


def test_a_tensor_without_numbers_is_refused(tmp_path, weights):
    """It takes no bytes, so that its other size may be anything."""
    empty = {path: np.zeros((1 << 40, 0) if path == "head" else w.shape, np.float32) for path, w in weights.items()}
    write(tmp_path / "m.gguf", empty)
    with pytest.raises(ValueError, match=r"'output\.weight' has shape"):
        load(tmp_path / "m.gguf", quantized=True)


def test_an_array_longer_than_the_file_is_refused(tmp_path, weights):
    write(tmp_path / "m.gguf", weights)
    data = (tmp_path / "m.gguf").read_bytes()
    at = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8  # behind two types: its length
    (tmp_path / "m.gguf").write_bytes(data[:at] + (2**60).to_bytes(8, "little") + data[at + 8 :])
    with pytest.raises(ValueError, match=r"bytes begins at byte"):
        load(tmp_path / "m.gguf")


def test_other_families_are_refused(tmp_path, weights):
    write(tmp_path / "m.gguf", weights, family="gpt2")
    with pytest.raises(ValueError, match="'gpt2' model"):
        load(tmp_path / "m.gguf")


def test_an_unknown_word_splitter_is_refused(tmp_path, weights):
    write(tmp_path / "m.gguf", weights, splitter="martian")
    with pytest.raises(ValueError, match="'martian'"):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 10])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable GGUF file"):
        load(tmp_path / "m.gguf")


# SmolLM2 from its package: what tests of everything else rely on.


@pytest.fixture(scope="module", autouse=True)
def opened_once():
    """Reading a vocabulary takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qjax.models.gguf.open_gguf", functools.cache(open_gguf))
        yield


@pytest.fixture(scope="module")
def smollm2():
    return load()


def test_smollm2_has_the_published_sizes(smollm2):
    arch = smollm2[0].arch
    assert arch.parameters == 134_515_008
    sizes = (arch.layers, arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.ffn, arch.vocab)
    assert sizes == (30, 576, 9, 3, 64, 1536, 49152)
    assert arch.theta == 100000.0 and arch.tied


def test_smollm2_in_its_own_blocks(smollm2):
    """210 matrices in Q4_1 and the embedding in Q8_0, bit for bit those of the float load, in the file's own size."""
    _, quantized, _ = load(quantized=True)
    assert same_values(quantized, smollm2[1]) == 211
    kernels = [leaf for leaf in jax.tree.leaves(quantized, is_leaf=is_quantized) if is_quantized(leaf)]
    assert {ggml.type_of(leaf).name for leaf in kernels} == {"q4_1", "q8_0"}
    assert ggml.type_of(quantized["embed"]).name == "q8_0"
    assert qjax.nbytes(kernels) == (134_515_008 - 61 * 576 - 49152 * 576) * 20 // 32 + 49152 * 576 * 34 // 32


def test_smollm2_knows_a_fact(smollm2):
    model, params, tokenizer = smollm2
    tokens = tokenizer.encode("The capital of France is")
    logits = model(params, jnp.asarray(tokens)[None])
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"


def test_smollm2_cells_cover_the_210_matrices():
    spacing = cells(find())
    assert len(spacing) == 210
    assert spacing["layers/29/ffn/down"].shape == (48, 576)
    assert all(bool((d >= 0).all()) for d in spacing.values())


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "in 1984 it cost 3.14159 €",
        "  two  spaces\tand\ttabs\n\n\nlines  \n",
        "don't we'll they've I'd",
        "naïve café 東京 🙂 x²³ ½",
        "<|im_start|>user\nHi<|im_end|>",
        "",
    ],
)
def test_smollm2_tokenizer_round_trip(smollm2, text):
    tokenizer = smollm2[2]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smollm2_tokenizer_known_ids(smollm2):
    tokenizer = smollm2[2]
    assert tokenizer.vocab == 49152
    # Digits stand alone; special tokens are one id each.
    assert tokenizer.encode("1984").tolist() == [tokenizer.encode(d)[0] for d in "1984"]
    assert tokenizer.encode("<|im_start|>").tolist() == [tokenizer.bos] == [1]
    assert tokenizer.encode("<|im_end|>").tolist() == [tokenizer.eos] == [2]
