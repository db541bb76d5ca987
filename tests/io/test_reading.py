"""Checkpoints of other projects that are read only: written by numpy as those projects do, and decoded by numpy."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import qjax
from qjax.formats import FULL, NF4
from qjax.io.bitsandbytes import FourBits
from qjax.io.gpt_oss import read_experts
from qjax.models import load
from qjax.models.configuration import write_config
from qjax.models.safetensors import hf_name
from qjax.operators import Quantize
from qjax.trace.paths import leaves_with_paths
from tests.io.checkpoints import ARCH, WORDS, parameters

E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
# From create_fp4_map and get_4bit_type of bitsandbytes: not ascending, and two zeros.
FP4 = np.float32([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3]) / np.float32(12)
Q, K, GATE = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj", "model.layers.0.mlp.gate_proj"


def four_bits(outputs, inputs, size=64, kind="nf4", nested=None, seed=0):
    """Tensors of one module as bitsandbytes keeps them, of any codes; and the matrix [outputs, inputs]."""
    random = np.random.default_rng(seed)
    table = NF4.values() if kind == "nf4" else FP4
    codes = random.integers(0, 16, outputs * inputs, np.uint8)
    absmax = random.uniform(0.01, 2, outputs * inputs // size).astype(np.float32)
    state = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": [outputs, inputs]}
    tensors = {"weight": (codes[::2] << 4 | codes[1::2])[:, None], "weight.quant_map": table}
    if nested:
        dynamic = np.sort(random.uniform(-1, 1, 256)).astype(np.float32)
        index = random.integers(0, 256, len(absmax), np.uint8)
        outer = random.uniform(0.1, 1, -(-len(absmax) // nested)).astype(np.float32)
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 1.1}
        tensors |= {"weight.nested_absmax": outer, "weight.nested_quant_map": dynamic}
        absmax = dynamic[index].astype(np.float64) * outer[np.arange(len(index)) // nested] + np.float32(1.1)
        tensors["weight.absmax"] = index
    else:
        tensors["weight.absmax"] = absmax
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    return tensors, (table[codes].astype(np.float64) * np.repeat(absmax, size)).reshape(outputs, inputs)


def nvfp4(outputs, inputs, seed=0):
    """Tensors of one module as modelopt keeps them, and the matrix [outputs, inputs]."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 16, (outputs, inputs), np.uint8)
    scale = random.uniform(0.5, 448, (outputs, inputs // 16)).astype(ml_dtypes.float8_e4m3fn)
    top = np.float32(0.00123)
    tensors = {"weight": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": scale, "weight_scale_2": top}
    return tensors, E2M1[codes].astype(np.float64) * np.repeat(scale.astype(np.float64), 16, 1) * top


def write(folder, modules, settings, **files):
    """A model folder of float weights but for the tensors of `modules`."""
    tensors = {}
    for path, w in leaves_with_paths(parameters()).items():
        name = hf_name(path)
        if name.removesuffix(".weight") not in modules:
            tensors[name] = np.ascontiguousarray(np.asarray(w).T if w.ndim == 2 and path != "embed" else np.asarray(w))
    for module, own in modules.items():
        tensors |= {f"{module}.{suffix}": np.asarray(a) for suffix, a in own.items()}
    save_file(tensors, folder / "model.safetensors")
    config = write_config(ARCH) | ({} if settings is None else {"quantization_config": settings})
    (folder / "config.json").write_text(json.dumps(config))
    WORDS.write(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
OTHERS = [f"model.layers.1.{name}*" for name in ("self_attn", "mlp")]
OTHERS += [f"model.layers.0.{name}_proj" for name in ("self_attn.v", "self_attn.o", "mlp.up", "mlp.down")]
MODELOPT = {
    "quant_algo": "NVFP4",
    "group_size": 16,
    "kv_cache_quant_algo": None,
    "exclude_modules": ["lm_head", *OTHERS],
}


def test_bitsandbytes_folders_are_read(tmp_path):
    skip = {"llm_int8_skip_modules": ["lm_head", "model.layers.1", "down_proj", "up_proj", "v_proj", "o_proj"]}
    given = {Q: four_bits(64, 64), K: four_bits(64, 64, nested=256, seed=1), GATE: four_bits(96, 64, nested=32, seed=2)}
    write(tmp_path, {module: tensors for module, (tensors, _) in given.items()}, BNB | skip)
    leaves = leaves_with_paths(load(tmp_path)[1])
    for path, module in {"layers/0/attn/q": Q, "layers/0/attn/k": K, "layers/0/ffn/gate": GATE}.items():
        q = leaves[path]
        qjax.check(q, path)
        assert q.meta.element == NF4 and q.meta.block == (64, 1)
        np.testing.assert_allclose(np.asarray(qjax.dequantize(q)).T, given[module][1], rtol=3e-7, atol=0, err_msg=path)
    assert leaves["layers/0/attn/v"].dtype == jnp.float32  # a module that is left out


@pytest.mark.parametrize(
    ("kind", "size", "nested", "block"),
    [
        ("nf4", 64, None, None),
        ("fp4", 32, None, None),
        ("nf4", 64, 256, (FULL, FULL)),
        ("nf4", 32, 16, (FULL, 8)),
        ("fp4", 8, 4, (4, 1)),
        ("nf4", 8, 12, None),
    ],
)
def test_blocks_of_bitsandbytes_keep_their_codes(kind, size, nested, block):
    tensors, wanted = four_bits(16, 64, size, kind, nested)
    q = FourBits(kind).read("m", tensors, (64, 16))
    qjax.check(q)
    assert q.meta.element.bits == 4
    scale = q.scales[0]
    if block is None:
        assert scale.dtype == jnp.float32
        if nested is None:
            np.testing.assert_array_equal(np.asarray(scale).T.reshape(-1), tensors["weight.absmax"])
    else:
        assert (scale.meta.block, scale.meta.offset, scale.meta.element.bits) == (block, "minimum", 8)
        np.testing.assert_array_equal(np.asarray(scale.codes).T.reshape(-1), tensors["weight.absmax"])
        assert qjax.bits_per_weight(q) < 4 + (8 + 33 / 4 + 33) / size
    np.testing.assert_allclose(np.asarray(qjax.dequantize(q)).T, wanted, rtol=3e-7, atol=0)


RECORD = "weight.quant_state.bitsandbytes__nf4"


def state(**changes):
    def tamper(t):
        t[RECORD] = np.frombuffer(json.dumps(json.loads(t[RECORD].tobytes()) | changes).encode(), np.uint8)

    return tamper


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda t: t.pop("weight.nested_absmax"), "m lacks weight.nested_absmax"),
        (lambda t: t.pop("weight.nested_quant_map"), "m lacks weight.nested_quant_map"),
        (lambda t: t.pop(RECORD), "m lacks weight.quant_state.bitsandbytes__nf4"),
        (lambda t: t.update(SCB=np.zeros(3)), "m has SCB"),
        (lambda t: t.update(weight=t["weight"][:-1]), "m.weight has 511 bytes"),
        (lambda t: t.update({"weight.absmax": np.ones(16, np.float32)}), "m.weight.absmax is float32 of 16"),
        (lambda t: t.update({"weight.nested_absmax": np.float32([np.nan])}), "m.weight.nested_absmax: .* not finite"),
        (lambda t: t.update({"weight.nested_absmax": np.ones(2, np.float32)}), "nested_absmax is float32 of 2"),
        (lambda t: t.update({"weight.quant_map": np.zeros(16, np.float32)}), "m.weight.quant_map holds no finite"),
        (lambda t: t.update({"weight.nested_quant_map": np.ones(7, np.float32)}), "m.weight.nested_quant_map is"),
        (lambda t: t.update({RECORD: t[RECORD][:-3]}), "bitsandbytes__nf4 is not JSON"),
        (lambda t: t.update({RECORD: np.ones(3, np.float32)}), "bitsandbytes__nf4 is float32"),
        (state(shape=[64, 16]), "shape"),
        (state(quant_type="fp4"), "quant_type"),
        (state(blocksize=0), "blocksize is 0"),
        (state(blocksize=128), "blocks of 128 reach across rows of 64"),
        (state(nested_blocksize="x"), "nested_blocksize is 'x'"),
        (state(nested_offset=None), "nested_offset is None"),
    ],
)  # fmt: skip
def test_hostile_modules_of_bitsandbytes_are_refused(tamper, message):
    tensors, _ = four_bits(16, 64, nested=256)
    tamper(tensors)
    with pytest.raises(ValueError, match=message):
        FourBits("nf4").read("m", tensors, (64, 16))


@pytest.mark.parametrize("beside", [False, True], ids=["config.json", "hf_quant_config.json"])
def test_modelopt_folders_are_read(tmp_path, beside):
    given = {name: nvfp4(rows, 64, seed) for seed, (name, rows) in enumerate({Q: 64, K: 64, GATE: 96}.items())}
    modules = {name: {**tensors, "input_scale": np.float32(0.25)} for name, (tensors, _) in given.items()}
    if beside:
        write(tmp_path, modules, None, hf_quant_config={"producer": {}, "quantization": MODELOPT})
    else:
        write(tmp_path, modules, {"quant_method": "modelopt", **MODELOPT})
    leaves = leaves_with_paths(load(tmp_path)[1])
    for path, module in {"layers/0/attn/q": Q, "layers/0/attn/k": K, "layers/0/ffn/gate": GATE}.items():
        rounding, q = leaves[path].T, leaves[path].op
        qjax.check(q, path)
        assert rounding.outer.item() == 0.25 and q.scales[0].scales[0].item() == np.float32(0.00123)
        np.testing.assert_allclose(np.asarray(qjax.dequantize(q)).T, given[module][1], rtol=3e-7, atol=0, err_msg=path)


def test_modelopt_fp8_and_what_it_refuses(tmp_path):
    codes = np.random.default_rng(0).normal(size=(64, 64)).astype(ml_dtypes.float8_e4m3fn)
    tensors = {"weight": codes, "weight_scale": np.float32(0.3), "input_scale": np.float32(0.7)}
    settings = {"quant_method": "modelopt", **MODELOPT, "quant_algo": "FP8", "group_size": None}
    settings["exclude_modules"] = [*settings["exclude_modules"], "*k_proj", "*gate_proj"]
    write(tmp_path, {Q: tensors}, settings)
    node = leaves_with_paths(load(tmp_path)[1])["layers/0/attn/q"]
    assert node.T.grid.scales[0].item() == np.float32(0.7)
    np.testing.assert_array_equal(np.asarray(qjax.dequantize(node.op)).T, codes.astype(np.float32) * np.float32(0.3))
    four = {**nvfp4(64, 64)[0], "input_scale": np.float32(1)}
    fp4 = {**settings, "quant_algo": "NVFP4"}
    nan = np.full((), np.nan, np.float32)
    for changed, config, message in (
        (tensors, {**settings, "quant_algo": "INT4_AWQ"}, "'INT4_AWQ' cannot be read"),
        (tensors, {**settings, "kv_cache_quant_algo": "FP8"}, "kv_cache_quant_algo"),
        (tensors, {**settings, "exclude_modules": [3]}, "not names"),
        (tensors, {**fp4, "group_size": 32}, "NVFP4 has 16"),
        (four | {"weight_scale_2": nan}, fp4, "q_proj: a scale is not finite"),
        (four | {"input_scale": nan}, fp4, "one positive input_scale"),
        (four | {"input_scale": np.ones((), np.int32)}, fp4, "one positive input_scale"),
        (four | {"weight": four["weight"].view(np.int8)}, fp4, "q_proj.weight is int8"),
        (four | {"weight_scale": np.ones((64, 4), np.float32)}, fp4, "q_proj.weight_scale is float32"),
        (four | {"weight": four["weight"][:, 1:].copy()}, fp4, "q_proj.weight has shape"),
        ({k: v for k, v in four.items() if k != "weight_scale_2"}, fp4, "lacks weight_scale_2"),
    ):
        write(tmp_path, {Q: changed}, config)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_experts_of_gpt_oss():
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 8, 2, 16), np.uint8)
    scales = random.integers(100, 140, (3, 8, 2), np.uint8)
    pairs = np.stack([E2M1[blocks & 15], E2M1[blocks >> 4]], -1).reshape(3, 8, 2, 32)
    wanted = (pairs * 2.0 ** (scales[..., None] - 127.0)).reshape(3, 8, 64)
    q = read_experts("mlp.experts.gate_up_proj", blocks, scales)
    qjax.check(q)
    assert q.shape == (3, 64, 8) and q.batch_shape == (3,)
    np.testing.assert_array_equal(np.asarray(qjax.dequantize(q)), wanted.swapaxes(1, 2))
    for bad, message in (
        ((blocks[..., :8], scales), "x_blocks and _scales"),
        ((blocks, scales[:, 1:]), "do not agree"),
        ((blocks.view(np.int8), scales), "x_blocks is int8"),
        ((blocks, scales.astype(np.float32)), "x_scales is float32"),
        ((blocks, np.full_like(scales, 255)), "x: a scale is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            read_experts("x", *bad)


def test_inputs_under_a_calibrated_tensor_scale():
    """NVFP4 of inputs, block after block, against numpy: amax / 6 under the tensor scale, in E4M3."""
    x = np.random.default_rng(0).normal(size=(3, 5, 32)).astype(np.float32)
    outer = np.float32(0.01)
    blocks = x.reshape(-1, 16)
    scale = (np.abs(blocks).max(1) / 6 / outer).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    step = scale.astype(np.float32)[:, None] * outer
    levels = np.unique(E2M1)
    wanted = levels[np.abs(blocks[..., None] / step[..., None] - levels).argmin(-1)] * step
    found = np.asarray(jax.jit(Quantize.under("nvfp4", outer).apply)(jnp.asarray(x)))
    np.testing.assert_allclose(found, wanted.reshape(x.shape), rtol=3e-7, atol=0)
    with pytest.raises(ValueError, match="no tensor scale"):
        Quantize.under("mxfp4", 1.0)
