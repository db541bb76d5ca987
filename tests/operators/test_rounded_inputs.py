"""Rounded inputs meeting rounded weights in codes: the layout, both kernels interpreted, gradients, refusals."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.kernels.aot import gpu
from qjax.operators import block_scaled_codes, rounded_inputs, row_scaled_codes
from qjax.operators.explanation import choices
from qjax.operators.maps.quantize import Quantize
from qjax.operators.packed import pack, unpack
from qjax.operators.pre import Pre
from qjax.operators.preparation import prepare
from qjax.quantization import dequantize, quantize
from tests import draw
from tests.kernels import mosaic_gpu

BLOCK_SCALED = ("nvfp4", "mxfp4", "mxfp8_e4m3")
K, N = 256, 128


def weight(fmt, *batch):
    return quantize(jnp.asarray(draw.normal(0, *batch, K, N)), fmt, batch_axes=len(batch))


def inputs(*tokens):
    return jnp.asarray(draw.normal(1, *tokens, K))


@pytest.mark.parametrize("fmt", BLOCK_SCALED)
def test_the_layout_gives_back_every_bit(fmt):
    q = weight(fmt, 2)
    p = pack(q, block_scaled_codes.NAME)
    back = unpack(p)
    assert p.shape == q.shape and p.bits() == sum(8 * leaf.nbytes for leaf in jax.tree.leaves(p))
    assert jax.tree.structure(back) == jax.tree.structure(q)
    for left, right in zip(jax.tree.leaves(back), jax.tree.leaves(q), strict=True):
        assert left.dtype == right.dtype and bool((left == right).all())
    assert bool((dispatch.dense(p.index(1)) == dequantize(q)[1]).all())


@mosaic_gpu.needed
@pytest.mark.parametrize("fmt", ["nvfp4", "mxfp8_e4m3"])
def test_scaled_blocks_are_multiplied_as_they_are(fmt):
    q, x, T = weight(fmt), inputs(5), Quantize.dynamic(fmt)
    y = block_scaled_codes.run(T.codes(x), pack(q, block_scaled_codes.NAME), mosaic_gpu.interpreter())
    expected = np.asarray(T.apply(x), np.float64) @ np.asarray(dequantize(q), np.float64)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@mosaic_gpu.needed
@pytest.mark.parametrize(
    ("fmt", "inputs_in", "static"),
    [
        ("int8", "int8", False),
        ("int8_tensor", "int8_tensor", True),
        ("fp8_e4m3", "fp8_e4m3", False),
        ("fp8_e4m3_tensor", "fp8_e4m3_tensor", False),
    ],
)
def test_eight_bits_are_multiplied_as_they_are_on_hopper(fmt, inputs_in, static):
    x = inputs(3, 2)
    T = Quantize.static(inputs_in, -3.0, 3.0) if static else Quantize.dynamic(inputs_in)
    p = prepare(weight(fmt), "gpu")
    run = functools.partial(row_scaled_codes.run, interpret=mosaic_gpu.interpreter())
    assert rounded_inputs.refusals(T, p, "gpu")["row_scaled"] is None
    (joint,) = (joint._replace(run=run) for joint in rounded_inputs.JOINTS if joint.name == "row_scaled")
    expected = np.asarray(T.apply(x), np.float64) @ np.asarray(dequantize(weight(fmt)), np.float64)
    np.testing.assert_allclose(rounded_inputs.matmul(joint, x, T, p), expected, rtol=1e-5, atol=1e-4)
    slopes = [
        jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x)
        for f in (lambda x: rounded_inputs.matmul(joint, x, T, p), lambda x: Pre(T, p).matmul(x))
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_integers_are_multiplied_as_they_are(prepared, static):
    q, x = weight("int8"), inputs(3, 2)
    T = Quantize.static("int8_tensor", -3.0, 3.0) if static else Quantize.dynamic("int8")
    leaf = prepare(q, "tpu") if prepared else q
    joint = next(joint for joint in rounded_inputs.JOINTS if joint.name == "integers")
    joint = joint._replace(run=functools.partial(joint.run, interpret=True))
    y = rounded_inputs.matmul(joint, x, T, leaf)
    expected = np.asarray(T.apply(x), np.float64) @ np.asarray(dequantize(q), np.float64)
    assert y.dtype == x.dtype and y.shape == (3, 2, N)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    assert rounded_inputs.matmul(joint, x[:0], T, leaf, jnp.bfloat16).shape == (0, 2, N)
    if not prepared:
        grads = [
            jax.grad(lambda x, op, f=f: (f(x, op) ** 2).sum(), (0, 1), allow_int=True)(x, leaf)
            for f in (lambda x, op: rounded_inputs.matmul(joint, x, T, op), lambda x, op: Pre(T, op).matmul(x))
        ]
        (dx, dop), (like, plain) = grads
        np.testing.assert_allclose(dx, like, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(*(np.asarray(d.scales[0], np.float32) for d in (dop, plain)), rtol=2e-2, atol=1e-2)


def test_what_is_taken_and_why_not():
    q, T = weight("int8"), Quantize.dynamic("int8")
    (told,) = choices({"w": Pre(T, prepare(q, "tpu"))}, platform="tpu")
    reasons = dict(told.refused)
    if jax.__version_info__ >= (0, 12):
        assert told.implementation == "dynamic" and not told.dequantizes and "integers" not in reasons
        assert reasons["block_scaled"] == reasons["row_scaled"] == "it is compiled for gpu, not tpu"
        for fmt in ("int8", "fp8_e4m3"):
            (told,) = choices(Pre(Quantize.dynamic(fmt), prepare(weight(fmt), "gpu")), 1, "gpu")
            assert told.implementation == "row_scaled" and not told.dequantizes
        (told,) = choices(Pre(Quantize.dynamic("nvfp4"), pack(weight("nvfp4"), block_scaled_codes.NAME)), 1, "gpu")
        assert told.implementation == "block_scaled"
        for T, op, platform, words in (
            (Quantize.dynamic("int8"), weight("int8_g64"), "tpu", "not a scale a token and an output"),
            (Quantize.dynamic("int8_affine"), q, "tpu", "x has uint8 codes"),
            (Quantize.dynamic("fp8_e4m3"), q, "tpu", "x has e4m3 codes"),
            (Quantize.dynamic("int8"), weight("int8", 2), "tpu", "batch axes"),
            (Quantize.dynamic("nvfp4"), weight("nvfp4"), "gpu", "prepare it"),
            (Quantize.dynamic("int8"), q, "hopper", "gpu.wgmma.e4m3.1: prepare it"),
            (Quantize.dynamic("int4"), prepare(weight("int4"), "gpu"), "hopper", "no codes of four bits"),
            (Quantize.dynamic("fp8_e4m3"), prepare(q, "gpu"), "hopper", "x has e4m3 codes and the weight int8"),
            (Quantize.dynamic("int8_affine"), prepare(q, "gpu"), "hopper", "x has uint8 codes and the weight int8"),
            (Quantize.dynamic("int8_g64"), prepare(q, "gpu"), "hopper", "not a scale a token and an output"),
            (Quantize.dynamic("int8"), prepare(weight("int8_g64"), "gpu"), "hopper", "not a scale a token and an"),
            (Quantize.dynamic("mxfp4"), pack(weight("nvfp4"), block_scaled_codes.NAME), "gpu", "one format for both"),
        ):
            name = {"tpu": "integers", "gpu": "block_scaled", "hopper": "row_scaled"}[platform]
            assert words in (rounded_inputs.refusals(T, op, platform.replace("hopper", "gpu"))[name] or "")
    else:
        assert "needs jax 0.12" in reasons["integers"]
    with pytest.raises(ValueError, match=r"'integers' cannot run QArray .256, 128.: it is compiled for tpu, not cpu"):
        dispatch.matmul(inputs(2), Pre(Quantize.dynamic("int8"), q), implementation="integers")


@mosaic_gpu.needed
def test_each_generation_of_gpus_says_whose_the_kernels_are(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for found, name, words in (
        ("10.0", "row_scaled", "WGMMA is of compute capability 9.0; this GPU's is 10.0"),
        ("9.0", "block_scaled", "a product of scaled blocks is of compute capability 10.0; this GPU's is 9.0"),
    ):
        monkeypatch.setattr(jax, "devices", lambda found=found: [types.SimpleNamespace(compute_capability=found)])
        whys = {joint.name: joint.elsewhere("gpu") for joint in rounded_inputs.JOINTS}
        assert whys.pop(name) == words
        assert whys.pop("integers") == whys.pop("dynamic") == "it is compiled for tpu, not gpu"
        assert list(whys.values()) == [None]


def test_the_scales_of_a_packed_leaf_are_no_leaf_of_their_own():
    assert [choice.path for choice in choices({"w": prepare(weight("nvfp4"), "tpu")})] == ["w"]


@pytest.mark.parametrize(
    ("fmt", "words"),
    [
        ("nvfp4_e4m3", "no tensor core multiplies e2m1 codes under its scales"),
        ("int4_g64", "no tensor core multiplies int4 codes"),
        ("fp4_e2m1_g64_rceil_e8m0", "blocks of 64: float8_e8m0fnu scales are of 32 codes"),
    ],
)
def test_the_layout_refuses_what_no_tensor_core_multiplies(fmt, words):
    assert words in (block_scaled_codes.refuse_layout(weight(fmt)) or "")
    assert "100 outputs" in (block_scaled_codes.refuse_layout(quantize(jnp.ones((K, 100)), "mxfp4")) or "")


@mosaic_gpu.needed
def test_a_layout_lowers_for_blackwell_with_its_rounding_in_front():
    p, T = pack(weight("nvfp4"), block_scaled_codes.NAME), Quantize.dynamic("nvfp4")
    lowered = gpu.lower(
        gpu.GPUS["B200"], lambda x: block_scaled_codes.run(T.codes(x), p), ((16, K), jnp.dtype(jnp.bfloat16))
    )
    assert "mosaic_gpu" in lowered.as_text()
