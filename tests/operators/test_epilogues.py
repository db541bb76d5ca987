"""Sums whose corrections the kernel of a packed leaf adds: what is taken, the matrix's numbers, gradients, words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.operators import epilogues, narrow_codes
from qjax.operators.columns import Columns
from qjax.operators.explanation import choices, explain
from qjax.operators.factored import Factored
from qjax.operators.maps.quantize import Quantize
from qjax.operators.packed import Packed
from qjax.operators.pre import Pre
from qjax.operators.preparation import prepare
from qjax.operators.sparse import Sparse
from qjax.operators.sum import Sum
from qjax.quantization import quantize
from tests import draw

K, N, R = 128, 128, 5
needs_012 = pytest.mark.skipif(
    jax.__version_info__ < narrow_codes.OLDEST_JAX, reason=f"no kernel for TPUs in jax {jax.__version__}"
)


def base(fmt="int4_g64", inputs=K, *batch):
    return prepare(quantize(draw.normal(0, *batch, inputs, N), fmt, batch_axes=len(batch)), "tpu")


def low_rank(inputs=K, rank=R):
    return Factored(draw.normal(1, inputs, rank, scale=0.1), draw.normal(2, rank, N, scale=0.1))


def floats(inputs):
    return draw.normal(3, inputs, N)


def interpreted(monkeypatch):
    """A platform that calls itself a TPU, its kernel interpreted; whether each call of it had an epilogue."""
    from qjax.kernels.tpu import group_scaled

    kernel, calls = group_scaled.matmul, []

    def matmul(*operands, **options):
        calls.append(options["epilogue"] is not None)
        return kernel(*operands, **(options | {"interpret": True}))

    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(group_scaled, "matmul", matmul)
    return calls


OPERATORS = {
    "low rank": lambda: Sum((base(), low_rank())),
    "two, one quantized, in front": lambda: Sum(
        (low_rank(), Factored(draw.normal(4, K, 32), quantize(draw.normal(5, 32, N), "int8")), base("nvfp4"))
    ),
    "float channels": lambda: Columns(
        (floats(3), base("mxfp4")), jnp.asarray(np.random.default_rng(6).permutation(K + 3))
    ),
    "filled up, int8 channels": lambda: Columns((base("int4_g64", 100), quantize(floats(28), "int8"))),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_one_kernel_adds_up_what_the_matrix_says(name):
    op = OPERATORS[name]()
    x = draw.normal(7, 3, 2, op.shape[0]).astype(jnp.bfloat16)
    inputs = op.parts(x) if isinstance(op, Columns) else [x] * len(op.ops)
    y = epilogues.matmul(op.ops, inputs, jnp.float32, interpret=True)
    assert y.shape == (3, 2, N) and y.dtype == jnp.float32
    exact, W = np.asarray(x, np.float64), np.asarray(dispatch.dense(op), np.float64)
    assert (np.abs(y - exact @ W) <= 2.0**-7 * (np.abs(exact) @ np.abs(W))).all()
    assert epilogues.matmul(op.ops, inputs, interpret=True).dtype == jnp.bfloat16
    assert epilogues.matmul(op.ops, [x[:0] for x in inputs], interpret=True).shape == (0, 2, N)


@needs_012
@pytest.mark.parametrize(("name", "taken"), [("low rank", False), ("float channels", True)])
def test_a_tpu_takes_it_where_it_is_sooner_and_rounds_as_products_apart_do(monkeypatch, name, taken):
    """The same numbers meet the same ones: the two ways differ by the order of float32 sums."""
    op = OPERATORS[name]()
    calls = interpreted(monkeypatch)
    x = draw.normal(7, 3, op.shape[0]).astype(jnp.bfloat16)
    y = dispatch.matmul(x, op, dtype=jnp.float32)
    named = dispatch.matmul(x, op, dtype=jnp.float32, implementation="epilogue")
    apart = dispatch.matmul(x, op, dtype=jnp.float32, implementation="mosaic")
    assert calls == [taken, True, False] and bool((y == (named if taken else apart)).all())
    np.testing.assert_allclose(named, apart, rtol=1e-5, atol=1e-4)


def test_gradients_of_a_trained_correction_are_those_of_the_products():
    """LoRA on a quantized base: the factors and the input, through the kernel and through the matrix."""
    leaf, factored = base("int8"), low_rank()
    x = draw.normal(7, 3, K).astype(jnp.bfloat16)

    def fused(x, a, b):
        ops = (leaf, Factored(a, b))
        return (epilogues.matmul(ops, [x, x], jnp.float32, interpret=True) ** 2).sum()

    def plain(x, a, b):
        return (dispatch.product(x.astype(jnp.float32), dispatch.dense(leaf) + a @ b) ** 2).sum()

    found, wanted = (jax.grad(f, (0, 1, 2))(x, factored.a, factored.b) for f in (fused, plain))
    for got, want in zip(found, wanted, strict=True):
        assert got.dtype == want.dtype
        largest = float(jnp.abs(want).max())
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), rtol=2e-2, atol=2e-2 * largest)


REFUSED = {
    "batch axes": lambda: Sum((base("int4_g64", K, 2), Factored(jnp.ones((2, K, R)), jnp.ones((2, R, N))))),
    "its codes are not packed: prepare it": lambda: Sum((quantize(floats(K), "int4_g64"), low_rank())),
    "its codes are packed as cpu": lambda: Sum((prepare(quantize(floats(K), "int4_g64")), low_rank())),
    "term 1 is Sparse: to gather its inputs takes longer": lambda: Sum((base(), Sparse.largest(floats(K), 9))),
    "term 0 is Pre: a correction is Factored": lambda: Columns((Pre(Quantize.dynamic("int8"), floats(32)), base())),
    "term 1 is Factored with b a Factored": lambda: Sum((base(), Factored(jnp.ones((K, K)), low_rank()))),
    "a rank of 1024 is more than": lambda: Sum((base(), low_rank(K, 1019), low_rank())),
    "there is no other term": lambda: Sum((base(),)),
}


@needs_012
@pytest.mark.parametrize("words", REFUSED)
def test_why_not(words):
    op = REFUSED[words]()
    why = epilogues.refusals(op.ops, 1, "tpu", jnp.bfloat16)["epilogue"]
    assert words in (why or "")
    (told,) = [c for c in choices(op, 1, "tpu", jnp.bfloat16) if "epilogue" in dict(c.refused)]
    assert dict(told.refused)["epilogue"] == why and told.implementation != "epilogue"


def test_explain_says_what_is_fused_and_why_not():
    op = Sum((base(), low_rank()))
    (here,) = choices({"w": op})
    assert here.implementation == "dequantize" and dict(here.refused)["epilogue"] == "it is compiled for tpu, not cpu"
    channels = Columns((base(), floats(3)))
    told = explain({"w": op, "v": channels}, platform="tpu", dtype=jnp.bfloat16)
    if jax.__version_info__ >= narrow_codes.OLDEST_JAX:
        assert "tpu.int4.2  ->  epilogue" in told and "tpu.int4.2  ->  mosaic" in told
        assert "epilogue: it takes bfloat16 activations and x is float32" in explain(op, platform="tpu")
    else:
        assert "epilogue: it needs jax 0.12" in told
    assert "epilogue" not in explain({"w": op.ops[0]})
    assert "epilogue" in dict(choices(Columns((floats(3), base())))[0].refused)


def test_a_name_runs_or_raises():
    x = jnp.ones((2, K), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"'epilogue' cannot run Sum \(128, 128\): it is compiled for tpu, not cpu"):
        dispatch.matmul(x, Sum((base(), low_rank())), implementation="epilogue")
    with pytest.raises(ValueError, match=r"'epilogue' cannot run Sum .*: no term is a quantized leaf"):
        dispatch.matmul(x, Sum((floats(K), low_rank())), implementation="epilogue")
    with pytest.raises(ValueError, match="no implementation 'epilogue' for Packed"):
        dispatch.matmul(x, base(), implementation="epilogue")
    assert isinstance(base(), Packed) and dispatch.matmul(x, Sum((base(), low_rank()))).shape == (2, N)
