"""What we export, opened by the programs it is for."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import qjax
from qjax.io.inputs import settings, write
from qjax.models import Architecture, Decoder, Experts, Tokenizer, load
from qjax.trace.paths import leaves_with_paths, replace_leaves

pytestmark = pytest.mark.oracle

ARCH = Architecture(vocab=50, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, tied=False)
MODEL = Decoder(ARCH)
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 24))
WORDS = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")))


def kernels(params):
    return [path for path, w in leaves_with_paths(params).items() if path.startswith("layers/") and w.ndim == 2]


def quantized(formats, wrap=lambda q: q):
    """Random parameters with every kernel of a layer quantized, the formats taken in turn; and their float values."""
    params = MODEL.init(jax.random.key(0))
    leaves = leaves_with_paths(params)
    qs = {path: qjax.quantize(leaves[path], formats[i % len(formats)]) for i, path in enumerate(kernels(params))}
    values = {path: qjax.dequantize(q) for path, q in qs.items()}
    return replace_leaves(params, {path: wrap(q) for path, q in qs.items()}), replace_leaves(params, values)


def their_logits(folder, **options):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.float().numpy()


def error(ours, theirs):
    return (np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max()


@pytest.mark.parametrize(
    ("formats", "layout", "bound"),
    [
        (["int4_g32"], None, 1e-4),
        (["int4_g32_affine"], None, 1e-4),
        (["int4"], "int-quantized", 1e-4),
        (["int8_f32", "int3_g32", "int4_g32"], None, 1e-4),
        (["int8", "fp8_e4m3"], None, 1e-4),
        (["int8_g32_affine"], "int-quantized", 1e-4),
        (["fp8_e4m3_t32x32_f32"], None, 1e-4),
        (["mxfp4"], None, 1e-4),
        (["mxfp8"], None, 1e-4),
        (["nvfp4"], None, 1e-4),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else str(value),
)
def test_transformers_gives_our_logits(tmp_path, formats, layout, bound):
    pytest.importorskip("compressed_tensors")
    qparams, values = quantized(formats)
    qjax.io.export(tmp_path / "m", MODEL, qparams, to="compressed-tensors", layout=layout, tokenizer=WORDS)
    options = {}
    # Unless told to, it expects packed zeros unpacked, and holds FP4 and MX weights in bfloat16 whatever the model's.
    if layout is None and formats[0] in ("int4_g32_affine", "mxfp4", "mxfp8", "nvfp4"):
        from transformers import CompressedTensorsConfig

        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    theirs = their_logits(tmp_path / "m", **options)
    if formats == ["nvfp4"]:  # their decompression of NVFP4 ends in bfloat16, whatever the model's dtype
        values = jax.tree.map(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32) if w.ndim == 2 else w, values)
        params = MODEL.init(jax.random.key(0))
        values = {**values, "embed": params["embed"], "head": params["head"]}
    ours = np.asarray(MODEL(values, jnp.asarray(TOKENS)))
    print(f"\n{formats}: relative error at most {error(ours, theirs):.1e} per token")
    assert error(ours, theirs) < bound


EXPERTS = Experts(4, 2, 32)
FAMILIES = {
    "mistral": {"windows": (5,)},
    "qwen2": {"qkv_bias": True, "windows": (0, 5)},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {"placement": "post", "qk_norm": "width"},
    "mixtral": {"ffn": 32, "experts": EXPERTS},
    "qwen2_moe": {"qkv_bias": True, "experts": replace(EXPERTS, shared=64, normalized=False, dense=(1,))},
    "qwen3_moe": {"qk_norm": "head", "experts": replace(EXPERTS, dense=(0,))},
}


@pytest.mark.parametrize(
    ("kind", "fmt"),
    [
        *((kind, "int4_g32") for kind in FAMILIES),
        *((kind, "fp8_e4m3") for kind in list(FAMILIES)[4:]),
        ("mixtral", "int3_g32"),
    ],
)
def test_transformers_opens_the_families_that_we_write(tmp_path, kind, fmt):
    """Its experts are one parameter of floats; those it decompresses are packed symmetric integers and FP8 alone."""
    pytest.importorskip("compressed_tensors")
    from transformers import CompressedTensorsConfig

    model = Decoder(replace(ARCH, **FAMILIES[kind]))
    params = model.init(jax.random.key(0))
    leaves = leaves_with_paths(params)
    kernels = {p: w for p, w in leaves.items() if p.startswith("layers/") and w.ndim > 1 and w.shape[-1] > 4}
    qs = {p: qjax.quantize(w, fmt, batch_axes=w.ndim - 2) for p, w in kernels.items()}  # no router, no shared gate
    qparams = replace_leaves(params, qs)
    qjax.io.export(tmp_path / "m", model, qparams, to="compressed-tensors", tokenizer=WORDS)
    assert load(tmp_path / "m")[0].arch == model.arch
    theirs = their_logits(tmp_path / "m", quantization_config=CompressedTensorsConfig(dequantize=True))
    ours = np.asarray(model(replace_leaves(params, {p: qjax.dequantize(q) for p, q in qs.items()}), TOKENS))
    print(f"\n{kind} in {fmt}: relative error at most {error(ours, theirs):.1e} per token")
    assert error(ours, theirs) < 1e-3


@pytest.mark.parametrize(
    ("weights", "inputs"),
    [("int8", "int8_token_f32"), ("fp8_e4m3", "fp8_e4m3_token_f32"), ("fp8_e4m3", "static fp8_e4m3_tensor")],
)
def test_transformers_rounds_inputs_as_we_do(tmp_path, weights, inputs):
    pytest.importorskip("compressed_tensors")
    static, _, fmt = inputs.rpartition(" ")
    make = qjax.operators.Quantize
    rounding = make.static(fmt, -3.0, 3.0) if static else make.dynamic(fmt)
    qparams, _ = quantized([weights], lambda q: qjax.Pre(rounding, q))
    qjax.io.export(tmp_path / "m", MODEL, qparams, to="compressed-tensors", tokenizer=WORDS)
    theirs = their_logits(tmp_path / "m")
    _, again, _ = load(tmp_path / "m")
    ours = np.asarray(qjax.quantized(MODEL)(again, jnp.asarray(TOKENS)))
    # An input at a tie of the rounding may fall either way by its last bit, and what follows with it: not half of all.
    errors = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    print(f"\n{weights} on {inputs}: relative error {np.median(errors):.1e} in the median, {errors.max():.1e} at most")
    assert np.median(errors) < 1e-5 and errors.max() < 0.1


@pytest.mark.parametrize(
    ("fmt", "heads"),
    [("fp8_e4m3_tensor", None), ("int8_tensor", None), ("int8_tensor", 1.5), ("int8_g8_f32", None)],
)
def test_transformers_rounds_keys_and_values_as_we_do(tmp_path, fmt, heads):
    """Under one scale a layer, or one a head, the next `heads` times wider, or dynamic ones of 8 channels."""
    pytest.importorskip("compressed_tensors")
    qparams, _ = quantized(["int8"])
    ends = {"attn/key": (2.0, 3.0), "attn/value": (1.5, 1.0)}
    wider = 1.0 if heads is None else heads ** np.arange(MODEL.arch.kv_heads)

    def tap(end):
        if "_g" in fmt:
            return qjax.operators.Quantize.dynamic(fmt)
        make = qjax.operators.Quantize.static if heads is None else qjax.operators.PerHead.static
        return make(fmt, -end * wider, end * wider)

    taps = {f"layers/{i}/{site}": tap(end[i]) for i in range(2) for site, end in ends.items()}
    qjax.io.export(tmp_path / "m", MODEL, qjax.Program(qparams, taps), to="compressed-tensors", tokenizer=WORDS)
    theirs = their_logits(tmp_path / "m")
    _, again, _ = load(tmp_path / "m")
    ours = np.asarray(qjax.tapped(MODEL)(again, jnp.asarray(TOKENS)))
    plain = np.asarray(qjax.quantized(MODEL)(qparams, jnp.asarray(TOKENS)))
    errors = np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)
    print(
        f"\n{fmt}: relative error {np.median(errors):.1e} in the median; the rounding itself {error(plain, ours):.1e}"
    )
    # Dynamic scales differ in their last bit here and there, and with them codes at a tie.
    bound = 1e-3 if "_g" in fmt else 1e-4
    assert np.median(errors) < bound and errors.max() < 0.1 and error(plain, ours) > 3e-3


def test_compressed_tensors_rounds_inputs_to_nvfp4_as_we_do():
    """Its own functions, on the settings and the divisor that we write: its linear layers are bfloat16 in NVFP4."""
    torch, quantization = pytest.importorskip("torch"), pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    rounding = qjax.operators.Quantize.under("nvfp4", 3 / 6 / 448)
    divisor = torch.from_numpy(write("q", rounding, "float32")["input_global_scale"])
    args = quantization.QuantizationArgs(**settings(rounding))
    x = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    given = torch.from_numpy(x)
    scale, zero = compute_dynamic_scales_and_zp(given, args, torch.nn.Module(), divisor)
    theirs = fake_quantize(given, scale, zero, args, global_scale=divisor).numpy()
    ours = np.asarray(rounding.apply(jnp.asarray(x)))
    # A scale or a value at a tie of its rounding may fall either way: both sides divide, by reciprocals of each other.
    assert np.mean(~np.isclose(ours, theirs, rtol=1e-6, atol=0)) < 0.002


def test_transformers_opens_our_gguf(tmp_path):
    """Its own reader of GGUF undoes the order of q and k."""
    qparams, values = quantized(["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "int4_g32"])
    qjax.io.export(tmp_path / "m.gguf", MODEL, qparams, to="gguf")
    torch = pytest.importorskip("torch")
    theirs = their_logits(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours = np.asarray(MODEL(values, jnp.asarray(TOKENS)))
    print(f"\nGGUF: relative error at most {error(ours, theirs):.1e} per token")
    assert error(ours, theirs) < 1e-4


def test_smollm2_goes_out_as_it_came_in(tmp_path):
    """Every tensor of the file that its authors wrote, byte for byte, and every token."""
    from gguf import GGUFReader

    from qjax.models import find

    model, params, words = load(quantized=True)
    qjax.io.export(tmp_path / "m.gguf", model, params, to="gguf", tokenizer=words)
    given, made = GGUFReader(find()), GGUFReader(tmp_path / "m.gguf")
    assert {t.name: t.tensor_type for t in given.tensors} == {t.name: t.tensor_type for t in made.tensors}
    tensors = {t.name: t.data for t in made.tensors}
    for tensor in given.tensors:
        np.testing.assert_array_equal(tensors[tensor.name], tensor.data, err_msg=tensor.name)
    for key in ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id"):
        name = f"tokenizer.ggml.{key}"
        assert made.fields[name].contents() == given.fields[name].contents(), name
