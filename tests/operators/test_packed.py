"""The CPU layout and its kernel: exact packing over every code, agreement with the reference, gradients."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.formats.spelling import parse
from qjax.kernels.cpu import nibble_words as kernel
from qjax.operators.explanation import choices, explain
from qjax.operators.factored import Factored
from qjax.operators.grouped import NIBBLES
from qjax.operators.implementations import Implementation, choose
from qjax.operators.nibble_words import NAME as WORDS
from qjax.operators.packed import LAYOUTS, Packed, pack
from qjax.operators.preparation import prepare, unpack
from qjax.operators.sum import Sum
from qjax.qarray import QArray
from qjax.quantization import dequantize, quantize
from tests import draw

needs_kernel = pytest.mark.skipif(kernel.problem() is not None, reason=str(kernel.problem()))
FORMATS = ("int4_g64", "int4_g64_narrow_f32", "int4_g32_affine", "int3_g64_affine", "int2_g64", "int4", "int4_affine")


def weight(*shape: int, seed: int = 0) -> jax.Array:
    return draw.normal(seed, *shape)


def same(a: QArray, b: QArray) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(equal))


# Every format with an axis that is filled up to whole groups; one of each kind whole, and under a batch axis.
SHAPES = [(fmt, (100, 3)) for fmt in (*FORMATS, "int8", "int8_g64", "int8_affine")]
SHAPES += [(fmt, shape) for fmt in ("int4_g64", "int4_g32_affine", "int4") for shape in ((128, 6), (2, 64, 5))]


@pytest.mark.parametrize(("fmt", "shape"), [case for case in SHAPES if not case[0].startswith("int8")])
def test_unpack_is_exact(fmt, shape):
    q = quantize(weight(*shape), fmt, batch_axes=len(shape) - 2)
    p = pack(q, NIBBLES)
    assert same(unpack(p), q)
    assert p.shape == q.shape and p.dtype == q.dtype
    assert bool((dispatch.dense(p) == dequantize(q)).all())


@pytest.mark.parametrize(
    "name", ["int1", "int2", "int3", "int4", "int4_narrow", "int4_affine", "int3_affine", "int2_affine"]
)
def test_every_code_survives(name):
    element = parse(name).element
    codes = jnp.asarray(element.values().astype(element.code_dtype))
    n = codes.size
    K, N = 4, n * n  # every code beside every other one in the low and the high nibble
    grid = jnp.stack([jnp.tile(codes, n), jnp.repeat(codes, n), jnp.repeat(codes, n), jnp.tile(codes, n)]).reshape(K, N)
    q = quantize(weight(K, N), parse(name))
    q = QArray(grid, q.scales, q.offset, q.table, q.meta)
    assert same(unpack(pack(q, NIBBLES)), q)


@pytest.mark.parametrize(("fmt", "shape"), SHAPES)
def test_scan_over_groups_agrees_with_dequantizing(fmt, shape):
    q = quantize(weight(*shape), fmt, batch_axes=len(shape) - 2)
    x = weight(*shape[:-2], 3, 2, shape[-2], seed=1)
    expected = dispatch.product(x, dequantize(q))
    leaves = [q] if LAYOUTS[NIBBLES].refuse(q) else [q, pack(q, NIBBLES)]
    for leaf in leaves:
        y = jax.jit(lambda x, leaf: dispatch.matmul(x, leaf, implementation="groups"))(x, leaf)
        assert y.shape == expected.shape and y.dtype == x.dtype
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


@needs_kernel
@pytest.mark.parametrize(
    ("fmt", "shape"),  # an axis padded to whole groups; a batch; one group an axis; float32 scales
    [("int4_g64", (120, 32)), ("int4_g32_affine", (2, 64, 32)), ("int4", (72, 64)), ("int3_g8_affine_f32", (64, 32))],
)
def test_words_are_exact_and_the_compiled_kernel_agrees_with_dequantizing(fmt, shape):
    q = quantize(weight(*shape), fmt, batch_axes=len(shape) - 2)
    p = pack(q, WORDS)
    assert same(unpack(p), q) and p.shape == q.shape and p.dtype == q.dtype
    ids = jnp.array([[31, 0], [17, 17]])
    assert bool((dispatch.rows(p, ids) == dispatch.rows(q, ids)).all())
    x = weight(*shape[:-2], 3, 2, shape[-2], seed=1)
    y = jax.jit(lambda x, p: dispatch.matmul(x, p, implementation="compiled"))(x, p)
    np.testing.assert_allclose(y, dispatch.product(x, dequantize(q)), rtol=2e-5, atol=2e-5)


def test_half_precision_activations_and_result_type():
    q = quantize(weight(64, 4), "int4_g64")
    x = weight(2, 64, seed=1).astype(jnp.bfloat16)
    for name in ("groups", "dequantize"):
        y = dispatch.matmul(x, q, implementation=name)
        assert y.dtype == jnp.bfloat16
        wide = dispatch.matmul(x, q, implementation=name, dtype=jnp.float32)
        np.testing.assert_allclose(wide, x.astype(jnp.float32) @ dequantize(q), rtol=0.02, atol=0.1)


def test_gradients_reach_activations_and_scales():
    q = quantize(weight(128, 4), "int4_g64_f32")
    x = weight(1, 128, seed=1)

    def loss(x, scales, name):
        return (dispatch.matmul(x, QArray(q.codes, scales, None, None, q.meta), implementation=name) ** 2).sum()

    slopes = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    found, want = (jax.tree.leaves(slopes(x, q.scales, name)) for name in ("groups", "dequantize"))
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_prepare_reaches_into_operators_and_back():
    q4, q8 = quantize(weight(128, 4), "int4_g64"), quantize(weight(128, 4), "int8")
    tree = {"a": Sum((q4, Factored(weight(128, 2), weight(2, 4)))), "b": q8, "norm": jnp.ones(4)}
    ready = prepare(tree)
    assert isinstance(ready["a"].ops[0], Packed) and ready["b"] is q8 and ready["norm"] is tree["norm"]
    assert same(unpack(ready)["a"].ops[0], q4)
    x = weight(1, 128, seed=1)
    np.testing.assert_allclose(dispatch.matmul(x, ready["a"]), dispatch.matmul(x, tree["a"]), rtol=1e-5, atol=1e-5)
    rows = dispatch.rows(ready["a"].ops[0], jnp.array([1, 3]))
    assert bool((rows == dequantize(q4).T[jnp.array([1, 3])]).all())


def test_packed_scans_and_indexes():
    q = quantize(weight(3, 64, 64), "int4_g64", batch_axes=1)
    x = weight(2, 64, seed=1)
    for p, how in ((pack(q, NIBBLES), "groups"), (prepare({"w": q})["w"], None)):
        y = jax.lax.scan(lambda x, op, how=how: (dispatch.matmul(x, op, implementation=how), None), x, p)[0]
        step = jax.jit(lambda x, p, i, how=how: dispatch.matmul(x, dispatch.index(p, i), implementation=how))
        z = functools.reduce(lambda x, i, p=p, step=step: step(x, p, i), range(3), x)
        np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-4)


@needs_kernel
def test_compiled_kernel_maps_and_has_gradients():
    p = pack(quantize(weight(64, 32), "int4_g32_affine"), WORDS)
    x = weight(3, 2, 64, seed=1)
    mapped = jax.vmap(lambda x: dispatch.matmul(x, p, implementation="compiled"))(x)
    np.testing.assert_allclose(mapped, dispatch.matmul(x, p, implementation="dequantize"), rtol=1e-5, atol=1e-5)

    def loss(x, scales, how):
        return (dispatch.matmul(x, replace(p, grid=replace(p.grid, scales=scales)), implementation=how) ** 2).sum()

    slopes = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    for a, b in zip(
        *(jax.tree.leaves(slopes(x, p.grid.scales, how)) for how in ("compiled", "dequantize")), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=2e-2, atol=1e-3)


def test_without_a_compiler_the_scan_runs_and_explain_says_why(monkeypatch):
    q = quantize(weight(512, 512), "int4_g64")
    words, why = pack(q, WORDS), "no C++ compiler: install one"
    monkeypatch.setattr(kernel, "_target", lambda: ("nothing", why))
    p = prepare({"w": q})["w"]
    assert p.layout == NIBBLES
    assert f"{NIBBLES}  ->  groups; compiled: it reads {WORDS}: {why}" in explain({"w": p})
    x = weight(1, 512, seed=1)
    np.testing.assert_allclose(dispatch.matmul(x, p), dispatch.product(x, dequantize(q)), rtol=1e-4, atol=1e-4)
    assert f"dequantize (dequantized whole); compiled: {why}" in explain(words)  # made on another machine
    for leaf in (p, words):
        with pytest.raises(ValueError, match=r"'compiled' cannot run.*no C\+\+ compiler"):
            dispatch.matmul(x, leaf, implementation="compiled")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
        kernel.matmul(x[None], words.codes[None], jnp.ones((1, 8, 512)), None, kernel.Coding(8))


@needs_kernel
def test_explain_says_why_a_leaf_is_not_in_words():
    told = explain(prepare({"n": quantize(weight(64, 4), "int4_g64"), "K": quantize(weight(68, 32), "int4")}))
    assert "4 outputs are no multiple of 32" in told and "groups of 68 are no multiple of 8" in told
    p = prepare({"w": quantize(weight(64, 32), "int4_g64")})["w"]
    assert p.layout == WORDS and choices(p)[0].implementation == "compiled"
    assert dict(choices(p, platform="tpu")[0].refused)["compiled"] == "it is built for cpu, not tpu"
    candidates = LAYOUTS[WORDS].implementations
    with pytest.raises(ValueError, match="x is float64"):
        choose(candidates, p, 1, "cpu", "compiled", jnp.float64)
    assert choose(candidates, p, 1, "cpu", None, jnp.float64).name == "dequantize"


def test_temporary_memory_is_a_small_part_of_the_float_weight():
    K = N = 1024
    q = jax.eval_shape(lambda: prepare({"w": quantize(weight(K, N), "int4_g64")})["w"])
    x = jax.ShapeDtypeStruct((1, K), jnp.float32)
    compiled = jax.jit(dispatch.matmul).lower(x, q).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < K * N * 4 / 5  # a tenth at 4096: the benchmark shows it


def test_named_implementations_run_or_raise():
    nf4 = quantize(weight(64, 4), "nf4_g64")
    x = weight(1, 64)
    with pytest.raises(ValueError, match="nf4, not integers"):
        dispatch.matmul(x, nf4, implementation="groups")
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        dispatch.matmul(x, nf4, implementation="fast")
    with pytest.raises(ValueError, match="nibble"):
        pack(quantize(weight(64, 4), "int8"), NIBBLES)
    with pytest.raises(ValueError, match="unknown layout"):
        pack(nf4, "gpu.nibbles")
    with pytest.raises(ValueError, match="no QArray"):
        prepare({"w": nf4})
    with pytest.raises(ValueError, match="no layout for target"):
        prepare({"w": nf4}, target="abacus")


def test_all_implementations_refusing_is_an_exception_group():
    candidates = [Implementation(n, lambda *_: "no", lambda *_: True, lambda x, q, d: x) for n in ("one", "two")]
    with pytest.raises(ExceptionGroup, match="no implementation runs") as info:
        choose(candidates, quantize(weight(64, 4), "int8"), 1, "cpu")
    assert len(info.value.exceptions) == 2


def test_explain_names_every_leaf_and_reason():
    tree = {
        "big": quantize(jnp.ones((512, 512)), "int4_g64"),
        "nf": quantize(weight(64, 4), "nf4_g64"),
        "norm": jnp.ones(4),
    }
    found = {c.path: c for c in choices(tree, tokens=1, platform="cpu")}
    assert found["big"].implementation == "groups" and not found["big"].dequantizes
    assert found["nf"].implementation == "dequantize" and found["nf"].refused[0][0] == "groups"
    assert choices(tree, tokens=4096, platform="cpu")[0].implementation == "dequantize"
    assert "nf4 64x1" in explain(tree) and "dequantized whole" in explain(tree)
