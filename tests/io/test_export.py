"""Checkpoints for other runtimes: what is in them decoded by numpy alone, and read back exactly; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import qjax
from qjax.io.tensors import open_tensors
from qjax.models import Decoder, load, stack_layers
from qjax.operators import Quantize
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests.io.checkpoints import ARCH, MODEL, WORDS, draw, parameters, same

FORMATS = {
    "layers/0/attn/q": "int4_g32",
    "layers/0/attn/k": "int4_g32_affine",
    "layers/0/attn/v": "int3_affine",
    "layers/0/attn/o": "int5_g32_f16",
    "layers/0/ffn/gate": "int4_f32",
    "layers/0/ffn/up": "uint4_g32",
    "layers/1/attn/q": "fp8_e4m3",
    "layers/1/attn/k": "fp8_e4m3_tensor",
    "layers/1/attn/v": "fp8_e4m3_t32x16_f32",
    "layers/1/attn/o": "mxfp8",
    "layers/1/ffn/gate": "nvfp4",
    "layers/1/ffn/up": "mxfp4",
    "layers/1/ffn/down": "nvfp4_e4m3",
    "head": "int8_tensor",
}


@pytest.fixture(scope="module")
def params():
    return parameters()


@pytest.fixture(scope="module")
def mixed(params):
    shapes = ARCH.shapes
    return replace_leaves(params, {p: draw(fmt, shapes[p], i) for i, (p, fmt) in enumerate(FORMATS.items())})


@pytest.fixture(scope="module")
def folder(mixed, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "m"
    qjax.io.export(path, MODEL, mixed, to="compressed-tensors", tokenizer=WORDS, shard=20000)
    return path


def integers(packed, bits, n):
    """Codes of `bits` bits lying densely in the rows of a table of int32 words or bytes."""
    stream = np.unpackbits(np.ascontiguousarray(packed).view(np.uint8), axis=-1, bitorder="little")
    stream = stream[..., : n * bits].reshape(*stream.shape[:-1], n, bits)
    return (stream * 2 ** np.arange(bits)).sum(-1).astype(np.float64)


def spread(scale, shape):
    scale = scale.astype(np.float32).astype(np.float64).reshape(scale.shape if scale.ndim == 2 else (1, 1))
    return np.kron(scale, np.ones((shape[0] // scale.shape[0], shape[1] // scale.shape[1])))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decoded(t, shape, bits):
    """The matrix [outputs, inputs] of a module's tensors, by what compressed-tensors says of their names."""
    scale = t["weight_scale"]
    if scale.dtype == np.uint8:
        scale = 2.0 ** (scale.astype(np.float64) - 127)
    if "weight_global_scale" in t:
        scale = scale.astype(np.float64) / t["weight_global_scale"]
    if "weight" in t:
        codes = t["weight"].astype(np.float64)
    elif t["weight_packed"].dtype == np.uint8:
        codes = E2M1[integers(t["weight_packed"], 4, shape[1]).astype(int)]
    else:
        assert t["weight_shape"].tolist() == list(shape)
        zero = 2 ** (bits - 1)
        if "weight_zero_point" in t:
            zero = integers(t["weight_zero_point"].T, bits, shape[0]).T
            zero = spread(zero, shape)
        codes = integers(t["weight_packed"], bits, shape[1]) - zero
    return codes * spread(scale, shape)


def module_tensors(folder, module):
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = [name for name in index if name.startswith(module + ".")]
    return {name.removeprefix(module + "."): open_tensors(folder / index[name])[name] for name in names}


def test_compressed_tensors_decoded_by_numpy(folder, mixed):
    leaves = leaves_with_paths(mixed)
    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    names |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    for path in FORMATS:  # rtol: a product of two scales rounds otherwise in float32
        q = leaves[path]
        module = "lm_head" if path == "head" else f"model.layers.{path[7]}.{names[path.rpartition('/')[2]]}"
        found = decoded(module_tensors(folder, module), q.shape[::-1], q.meta.element.bits)
        np.testing.assert_allclose(found.T, qjax.dequantize(q), rtol=3e-7, atol=0, err_msg=path)


def test_compressed_tensors_come_back_bit_for_bit(folder, mixed, params):
    model, again, words = load(folder)
    assert model.arch == ARCH and words.bos == 0
    ours, theirs = leaves_with_paths(mixed), leaves_with_paths(again)
    assert ours.keys() == theirs.keys()
    for path, node in ours.items():
        got = theirs[path]
        if path == "layers/0/ffn/up":  # the file's word for codes without a sign is a zero point, here 0
            assert got.meta.offset == "zero_point" and not np.any(got.offset)
            got = qjax.QArray(got.codes, got.scales, None, None, node.meta)
        if path == "layers/1/ffn/down":  # and for scales with nothing above them a one
            assert got.scales[0].scales[0].item() == 1
            np.testing.assert_array_equal(got.scales[0].codes, np.asarray(node.scales[0]).view(np.uint8))
            got = qjax.QArray(got.codes, node.scales, None, None, node.meta)
        if path == "layers/1/ffn/gate":  # the tensor scale went through its reciprocal
            a, b = (q.scales[0].scales[0].item() for q in (node, got))
            assert abs(a - b) <= 2**-23 * a
            inner = node.scales[0]
            got = qjax.QArray(
                got.codes,
                (qjax.QArray(got.scales[0].codes, inner.scales, None, None, inner.meta),),
                None,
                None,
                got.meta,
            )
        same(node, got)
        if isinstance(got, qjax.QArray):
            qjax.check(got, path)


def test_settings_name_every_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    settings = config["quantization_config"]
    assert config["dtype"] == "float32" and config["architectures"] == ["LlamaForCausalLM"]
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "mixed-precision")
    assert settings["ignore"] == ["model.layers.0.mlp.down_proj"]
    groups = {group["targets"][0]: group for group in settings["config_groups"].values()}
    assert sum(len(group["targets"]) for group in groups.values()) == len(FORMATS)
    weights = groups["model.layers.1.self_attn.v_proj"]["weights"]
    assert (weights["strategy"], weights["block_structure"]) == ("block", [16, 32])
    assert groups["model.layers.0.self_attn.k_proj"]["weights"]["symmetric"] is False


def test_one_kind_is_named_by_class(params, tmp_path):
    """bfloat16 parameters make a bfloat16 model, scanned layers a folder like any other."""
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    leaves = leaves_with_paths(half)
    kernels = [path for path, w in leaves.items() if w.ndim == 2 and "/" in path]
    qs = {path: draw("int4_g32", leaves[path].shape) for path in kernels}
    qs = {path: replace(q, meta=replace(q.meta, dtype="bfloat16")) for path, q in qs.items()}
    qparams = replace_leaves(half, qs)
    qjax.io.export(tmp_path / "m", Decoder(ARCH, scan=True), stack_layers(qparams), to="compressed-tensors")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["targets"] == ["Linear"] and config["quantization_config"]["ignore"] == ["lm_head"]
    tensors = open_tensors(tmp_path / "m" / "model.safetensors")
    assert tensors["model.layers.1.mlp.up_proj.weight_scale"].dtype == ml_dtypes.bfloat16
    assert tensors["model.norm.weight"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    "make",
    [
        lambda q: qjax.Pre(Quantize.dynamic("int8_token_f32"), q),
        lambda q: qjax.Pre(Quantize.dynamic("fp8_e4m3_g32_f32"), q),
        lambda q: qjax.Pre(Quantize.static("fp8_e4m3_tensor", -1.0, 2.0), q),
        lambda q: qjax.Pre(Quantize.under("nvfp4", 0.25), q),
    ],
    ids=["token", "group", "static", "local"],
)
def test_inputs_that_are_rounded(params, tmp_path, make):
    path, q = "layers/0/attn/q", draw("int8")
    node, kept = make(q), {path: make(q), "layers/0/attn/k": make(draw("fp8_e4m3"))}
    qjax.io.export(tmp_path / "m", MODEL, replace_leaves(params, kept), to="compressed-tensors", tokenizer=WORDS)
    tensors = open_tensors(tmp_path / "m" / "model.safetensors")
    np.testing.assert_array_equal(tensors["model.layers.0.self_attn.q_proj.weight"], np.asarray(q.codes).T)
    same(leaves_with_paths(load(tmp_path / "m")[1])[path], node)


def test_old_padded_words_are_read(params, tmp_path):
    """Before 0.18 codes of 3 bits stood ten in a word."""
    path, name = "layers/0/attn/q", "model.layers.0.self_attn.q_proj.weight_packed"
    q = draw("int3_g32")
    qjax.io.export(tmp_path / "m", MODEL, replace_leaves(params, {path: q}), to="compressed-tensors", tokenizer=WORDS)
    tensors = {k: np.array(v) for k, v in open_tensors(tmp_path / "m" / "model.safetensors").items()}
    codes = np.pad(np.asarray(q.codes).T.astype(np.int64) + 4, ((0, 0), (0, 6))).reshape(64, 7, 10)
    tensors[name] = np.ascontiguousarray((codes << 3 * np.arange(10)).sum(-1), np.int32)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    same(leaves_with_paths(load(tmp_path / "m")[1])[path], q)


def rotated(w):
    return qjax.Pre(qjax.operators.Orthogonal(jnp.eye(64)), w)


def words_of(table, bits, n, order=range(8)):
    """Codes along the last axis of int32 words; AWQ puts code order[i] of eight at place i."""
    codes = integers(table, bits, n)
    if list(order) == list(range(8)):
        return codes
    out = np.empty_like(codes)
    for i, place in enumerate(order):
        out[..., place::8] = codes[..., i::8]
    return out


@pytest.mark.parametrize(
    ("to", "layout", "fmt"),
    [("gptq", None, "int4_g32_affine_f16"), ("gptq", "gptq_v2", "int3_f16"), ("awq", None, "int4_g32_affine_f16")],
)
def test_gptq_and_awq_decoded_by_numpy_and_read_back(params, tmp_path, to, layout, fmt):
    leaves = leaves_with_paths(params)
    paths = [p for p, w in leaves.items() if w.ndim == 2 and "/" in p and p != "layers/1/attn/v"]
    qs = {p: draw(fmt, leaves[p].shape, i) for i, p in enumerate(paths)}
    nodes = dict(qs)
    # A file says which group an input is in, not its place there: ascending.
    order = np.argsort(np.random.default_rng(0).permutation(np.repeat(np.arange(3), 32)), kind="stable")
    if layout is None and to == "gptq":  # act-order: groups of inputs that do not lie side by side
        nodes["layers/0/ffn/down"] = qjax.Columns((qs["layers/0/ffn/down"],), jnp.asarray(order, jnp.int32))
    tree = replace_leaves(params, nodes)
    qjax.io.export(tmp_path / "m", MODEL, tree, to=to, layout=layout, tokenizer=WORDS)
    tensors = open_tensors(tmp_path / "m" / "model.safetensors")
    names = {"layers/0/ffn/down": "model.layers.0.mlp.down_proj.", "layers/1/ffn/up": "model.layers.1.mlp.up_proj."}
    for path, name in names.items():
        q, (inputs, outputs) = qs[path], qs[path].shape
        bits, scales = q.meta.element.bits, tensors[name + "scales"].astype(np.float64)
        if to == "awq":
            table = (0, 2, 4, 6, 1, 3, 5, 7)
            codes = words_of(tensors[name + "qweight"], bits, outputs, table)
            zeros = words_of(tensors[name + "qzeros"], bits, outputs, table)
            groups = np.arange(inputs) // 32
        else:
            codes = words_of(tensors[name + "qweight"].T, bits, inputs).T
            zeros = words_of(tensors[name + "qzeros"], bits, outputs) + (layout is None)
            groups = tensors[name + "g_idx"]
        found = (codes - zeros[groups]) * scales[groups]
        ours = np.asarray(qjax.dense(tree["layers"][path[7]]["ffn"][path.rpartition("/")[2]]))
        np.testing.assert_array_equal(found, ours, err_msg=path)
    again = load(tmp_path / "m")[1]
    same(again, tree)


def test_gptq_and_awq_refuse_what_they_cannot_hold(params, tmp_path):
    one = {"layers/0/attn/q": draw("int4_g32_f16")}
    zero = replace(draw("int4_g32_affine_f16"), offset=jnp.zeros((2, 64), jnp.uint8))
    odd = replace(draw("int4_g32_affine_f32"), scales=(jnp.full((2, 64), 1 / 3, jnp.float32),))
    rounded = qjax.Pre(Quantize.dynamic("int8_token_f32"), draw("int4_g32_f16"))
    for to, nodes, message in (
        ("gptq", {"layers/0/attn/q": zero}, "layers/0/attn/q.*no zero point 0.*gptq_v2"),
        ("gptq", {**one, "layers/0/attn/k": draw("int8_f16")}, "k_proj has .*q_proj has"),
        ("gptq", {"layers/0/attn/q": odd}, "layers/0/attn/q as scales: 0.3333.*_f16"),
        ("gptq", {"head": draw("int3_f16", (64, 8))}, "head as qzeros: 8 codes of 3 bits do not fill words"),
        ("awq", {"layers/0/attn/q": draw("int8_f16")}, "layers/0/attn/q: int8 .*no layout in awq"),
        ("awq", {"layers/0/attn/q": rounded}, "layers/0/attn/q: its input is rounded"),
    ):
        with pytest.raises(ValueError, match=message):
            qjax.io.export(tmp_path / "m", MODEL, replace_leaves(params, nodes), to=to)
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "a rotation": (lambda w: rotated(draw("int4_g32")), "qjax.fold"),
    "low rank": (lambda w: qjax.Sum((draw("int4"), qjax.Factored(w[:, :1], w[:1]))), "Sum"),
    "padding": (lambda w: qjax.quantize(w, "int4_g48"), "divide"),
    "a codebook": (lambda w: qjax.quantize(w, "nf4_g32_f32"), "nf4 in blocks"),
    "a minimum": (lambda w: qjax.quantize(w, "int4_g32_minimum"), "offset minimum"),
    "scales of scales": (lambda w: qjax.quantize(w, "int4_g32_narrow_scale_uint6_g2_f16"), "scales quantized"),
    "another activation": (lambda w: qjax.Pre(Quantize.dynamic("int8"), draw("int8")), "int8_token_f32"),
    "other static scales": (
        lambda w: qjax.Pre(Quantize.static("int8_tensor_affine", -1.0, 1.0), draw("int8")),
        "the static int8_tensor",
    ),
    "integers": (lambda w: w.astype(jnp.int32), "int32"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_held_is_refused_by_name(params, tmp_path, make):
    build, message = make
    path = "layers/1/attn/o"
    tree = replace_leaves(params, {path: build(leaves_with_paths(params)[path])})
    with pytest.raises(ValueError, match=rf"{path}.*{message}"):
        qjax.io.export(tmp_path / "m", MODEL, tree, to="compressed-tensors")
    assert list(tmp_path.iterdir()) == []


def test_arguments_are_checked_before_anything_is_written(params, mixed, tmp_path):
    embed = replace_leaves(params, {"embed": qjax.quantize(params["embed"], "int8", axis=-1)})
    for tree, message, options in (
        (mixed, "no container", {"to": "onnx"}),
        (mixed, "none of compressed-tensors", {"to": "compressed-tensors", "layout": "gptq"}),
        (params, "no parameter is quantized", {"to": "compressed-tensors"}),
        (embed, "embed", {"to": "compressed-tensors"}),
        ({**mixed, "norm": {"scale": jnp.ones(3)}}, "norm/scale has shape", {"to": "compressed-tensors"}),
    ):
        with pytest.raises(ValueError, match=message):
            qjax.io.export(tmp_path / "m", MODEL, tree, **options)
    (tmp_path / "m").mkdir()
    with pytest.raises(FileExistsError, match="remove it"):
        qjax.io.export(tmp_path / "m", MODEL, mixed, to="compressed-tensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m"] and list((tmp_path / "m").iterdir()) == []


def test_fused_matrices_with_several_tensor_scales_are_pointed_out(params, tmp_path):
    qs = {path: draw("nvfp4", (64, 96)) for path in ("layers/1/ffn/gate", "layers/1/ffn/up")}
    double = jax.tree.map(lambda a: a * 2 if a.dtype == jnp.float32 else a, qs["layers/1/ffn/up"])
    qs["layers/1/ffn/up"] = double
    with pytest.warns(UserWarning, match="layers/1: ffn/gate, ffn/up have tensor scales"):
        qjax.io.export(tmp_path / "m", MODEL, replace_leaves(params, qs), to="compressed-tensors")
