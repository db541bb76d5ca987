"""The algebra's laws on random nestings: matmul against affine, rows, transpose, index, slices, jit, vmap, scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qjax import dispatch
from qjax.operators import (
    AffineMap,
    Augment,
    Block,
    ByUse,
    Columns,
    Diag,
    Factored,
    Hadamard,
    Kronecker,
    NotAffine,
    NotLinear,
    Orthogonal,
    Permute,
    Post,
    Pre,
    Quantize,
    Reassemble,
    Rows,
    Scaled,
    Shift,
    Sparse,
    Stacked,
    Sum,
    View,
    prepare,
    straight_through,
)
from qjax.quantization import quantize
from tests.draw import normal

K = N = 8  # one size everywhere, so that nestings share compiled operations


def leaf(kind: str, batch: tuple[int, ...], k: int, n: int):
    w = normal(k * n, *batch, k, n)
    match kind:
        case "array":
            return w
        case "quantized":
            return quantize(w, "int4_g64", batch_axes=len(batch))
        case "nested scales":
            return quantize(w, "nvfp4", batch_axes=len(batch))
        case "affine format":
            return quantize(w, "int3_g4_affine_f32", batch_axes=len(batch))
        case "packed":
            return prepare({"w": quantize(w, "int4_g4", batch_axes=len(batch))})["w"]
        case "factored":
            return Factored(normal(1, *batch, k, 2), quantize(normal(2, *batch, 2, n), "int8", batch_axes=len(batch)))
        case "scaled":
            signs = quantize(w, "int4_g64", batch_axes=len(batch))
            return Scaled(signs, normal(4, *batch, k, 2), normal(5, *batch, 2, n))
        case "scaled by vectors":
            return Scaled(w, normal(4, *batch, k, 1), normal(5, *batch, 1, n))
        case "sparse":
            ids = jnp.broadcast_to(jnp.array([0, 3, 1, 3], jnp.uint8), (*batch, 4))
            return Sparse(normal(3, *batch, 4), ids, ids[..., ::-1], (k, n))
        case "latent":
            return straight_through(w, "mxfp4")
        case "view":
            swapped = quantize(jnp.swapaxes(w, -1, -2), "int4_g4", axis=-1, batch_axes=len(batch))
            return View.of(swapped).transpose()


LEAVES = (
    "array",
    "quantized",
    "nested scales",
    "affine format",
    "packed",
    "factored",
    "scaled",
    "scaled by vectors",
    "sparse",
    "latent",
    "view",
)


def a_map(kind: str, batch: tuple[int, ...]):
    match kind:
        case "diag":
            return Diag(normal(4, *batch, K))
        case "permute":
            return Permute(jnp.broadcast_to(jnp.array([3, 1, 0, 2, 7, 6, 5, 4]), (*batch, K)))
        case "hadamard":
            return Hadamard(jnp.sign(normal(5, *batch, K)).astype(jnp.int8), 8)
        case "kronecker":
            return Kronecker((normal(6, *batch, 2, 2), normal(7, *batch, 4, 4)))
        case "orthogonal":
            return Orthogonal(jnp.linalg.qr(normal(8, *batch, 4, 4))[0])
        case "block":
            return Block(normal(9, *batch, 2, 4, 4))
        case "affine":
            return AffineMap(normal(10, *batch, K, K), normal(11, *batch, K))
        case "shift":
            return Shift(normal(12, *batch, K))
        case "reassemble":
            taken, given = jnp.array([0, 1, 1, 3, 4, 5, 5, 7]), jnp.array([0, 0, 0, 1, 3, 4, 5, 7])
            return Reassemble(*(jnp.broadcast_to(groups, (*batch, K)) for groups in (taken, given)))


MAPS = ("diag", "permute", "hadamard", "kronecker", "orthogonal", "block", "affine", "shift", "reassemble")


@st.composite
def operators(draw_, batch=(), depth=3, k=K):
    """A random nesting [*batch, k, N]."""
    node = draw_(st.sampled_from(("leaf", "pre", "post", "sum", "columns", "rows", "by use", "augment", "stacked")))
    below = operators(batch=batch, depth=depth - 1)
    if depth == 0 or k != K or node == "leaf" or (node == "stacked" and not batch):
        return leaf(draw_(st.sampled_from(LEAVES)), batch, k, N)
    match node:
        case "pre":
            return Pre(a_map(draw_(st.sampled_from(MAPS)), batch), draw_(below))
        case "post":
            return Post(draw_(below), a_map(draw_(st.sampled_from(MAPS)), batch))
        case "sum":
            return Sum((draw_(below), draw_(below)))
        case "by use":
            op = draw_(below)
            return ByUse(op, op)
        case "columns":
            order = jnp.broadcast_to(jnp.array([5, 1, 0, 2, 7, 6, 3, 4]), (*batch, K))
            return Columns(
                (leaf("quantized", batch, 3, N), leaf("array", batch, 5, N)), draw_(st.sampled_from((order, None)))
            )
        case "rows":
            return Rows(
                (leaf("quantized", batch, K, 3), Post(leaf("array", batch, K, 5), Shift(normal(13, *batch, 5))))
            )
        case "augment":
            wide = leaf(draw_(st.sampled_from(("array", "quantized"))), batch, K + 2, N)
            return Pre(Augment(jnp.broadcast_to(jnp.array([2, 2]), (*batch, 2))), wide)
        case "stacked":
            parts = operators(batch=batch[1:], depth=depth - 1)
            return Stacked(tuple(draw_(parts) for _ in range(batch[0])))


def close(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(b).max())))


def reference(x, W, b):
    """x @ W + b with x [batch..., tokens..., K], in numpy."""
    batch = W.ndim - 2
    y = np.asarray(x, np.float64).reshape(*W.shape[:batch], -1, W.shape[-2]) @ np.asarray(W, np.float64)
    y = y.reshape(*x.shape[:-1], W.shape[-1])
    return y if b is None else y + np.asarray(b).reshape(*W.shape[:batch], *(1,) * (x.ndim - batch - 1), -1)


@given(st.sampled_from(((), (2,), (2, 1))).flatmap(lambda batch: operators(batch=batch)))
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_laws(op):
    *batch, k, n = op.shape
    x = normal(20, *batch, 2, 3, k)
    W, b = dispatch.affine(op)
    assert W.shape == op.shape and (b is None or b.shape == (*batch, n))
    y = dispatch.matmul(x, op)
    assert y.shape == (*batch, 2, 3, n) and y.dtype == x.dtype
    close(y, reference(x, W, b))
    close(jax.jit(dispatch.matmul)(x, op), y)
    assert dispatch.bits(op) > 0
    if b is None:
        ids = jnp.array([[0, 2], [1, 1]])
        close(dispatch.rows(op, ids), np.swapaxes(W, -1, -2)[..., np.asarray(ids), :])
        turned = dispatch.transpose(op)
        assert turned.shape == (*batch, n, k)
        close(dispatch.dense(turned), np.swapaxes(W, -1, -2))
    else:
        with pytest.raises(NotLinear):
            dispatch.dense(op)
    part = dispatch.outputs(op, 1, 2)
    if part is not None:
        close(dispatch.matmul(x, part), np.asarray(y)[..., 1:3])
    if batch:
        close(dispatch.affine(dispatch.index(op, 0))[0], W[0])
        whole = dispatch.scannable(op)
        if whole is not None:
            close(jax.vmap(dispatch.matmul)(x, whole), y)
            close(jax.lax.map(lambda pair: dispatch.matmul(*pair), (x, whole)), y)
            close(dispatch.affine(jax.jit(dispatch.index)(op, 1))[0], W[1])


@pytest.mark.parametrize("kind", LEAVES)
def test_gradients_match_the_dense_matrix(kind):
    op, x = leaf(kind, (), K, N), normal(21, 3, K)
    gradient = jax.grad(lambda x: (dispatch.matmul(x, op) ** 2).sum())(x)
    W = dispatch.dense(op)
    close(gradient, jax.grad(lambda x: ((x @ W) ** 2).sum())(x))


def test_gradients_reach_every_float_leaf():
    op = Sum((Pre(Diag(jnp.ones(K)), normal(0, K, N)), Factored(normal(1, K, 2), normal(2, 2, N))))
    grads = jax.grad(lambda op: dispatch.matmul(normal(3, 2, K), op).sum())(op)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))


def test_activation_quantizers_are_never_lost():
    op = Sum((normal(0, K, N), Pre(Quantize.dynamic("int8"), normal(1, K, N))))
    for ask in (dispatch.affine, dispatch.dense, dispatch.transpose):
        with pytest.raises(NotAffine, match="'ops/1/T'"):
            ask(op)
    with pytest.raises(NotAffine):
        dispatch.rows(op, jnp.array([0]))
    x = normal(2, 3, K)
    close(dispatch.matmul(x, op), x @ op.ops[0] + Quantize.dynamic("int8").apply(x) @ op.ops[1].op)


def test_by_use_looks_up_one_operator_and_multiplies_with_the_other():
    take, dot = normal(0, K, N), normal(1, K, N)
    op = ByUse(take=take, dot=Pre(Quantize.dynamic("int8"), dot))
    assert bool((dispatch.rows(op, jnp.array([3])) == take.T[3:4]).all())
    close(dispatch.matmul(jnp.ones((1, K)), op), jnp.ones((1, K)) @ dot)


def test_outermost_map_acts_first():
    down = Pre(Hadamard(None, K), Pre(Quantize.dynamic("int4"), normal(0, K, N)))
    x = normal(1, 3, K)
    turned = Hadamard(None, K).apply(x)
    close(dispatch.matmul(x, down), Quantize.dynamic("int4").apply(turned) @ down.op.op)


def test_half_precision_and_result_type():
    op = Sum((quantize(normal(0, K, N), "int8"), Factored(normal(1, K, 2), normal(2, 2, N))))
    x = normal(3, 2, K).astype(jnp.bfloat16)
    assert dispatch.matmul(x, op).dtype == jnp.bfloat16
    assert dispatch.matmul(x, op, dtype=jnp.float32).dtype == jnp.float32
    assert dispatch.matmul(x, jnp.ones((K, N), jnp.bfloat16)).dtype == jnp.bfloat16


def test_sparse_keeps_the_largest_entries_in_narrow_indices():
    w = normal(0, 300, 4)
    op = Sparse.largest(w, 7)
    assert op.ins.dtype == jnp.uint16 and op.outs.dtype == jnp.uint8
    kept = np.asarray(dispatch.dense(op))
    assert (kept != 0).sum() == 7 and np.abs(w)[kept != 0].min() >= np.abs(np.asarray(w))[kept == 0].max()
    assert dispatch.bits(op) == 7 * (32 + 16 + 8)


def test_many_tokens_meet_a_sparse_matrix_as_a_dense_one():
    """Of 1200 entries 7 are kept: from 172 tokens on the terms would be more than that."""
    op, x = Sparse.largest(normal(0, 300, 4), 7), normal(1, 400, 300)
    few, many = (jax.make_jaxpr(op.matmul)(x[:n]) for n in (171, 172))
    assert "f32[171,7]" in str(few) and "f32[172,7]" not in str(many)
    np.testing.assert_allclose(op.matmul(x), x @ op.affine()[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(op.matmul(x)[:171], op.matmul(x[:171]), rtol=1e-5, atol=1e-5)
    assert op.matmul(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_stacked_layers_of_unlike_structure():
    op = Stacked((quantize(normal(0, K, N), "int4_g4"), quantize(normal(1, K, N), "int8")))
    assert dispatch.scannable(op) is None and dispatch.index(op, 1) is op.ops[1]
    with pytest.raises(TypeError, match="Python int"):
        jax.jit(dispatch.index)(op, 1)


BAD = [
    (lambda: dispatch.matmul(jnp.ones((2, K), jnp.int32), jnp.ones((K, N))), TypeError, "floating"),
    (lambda: dispatch.matmul(jnp.ones((2, 3)), jnp.ones((K, N))), ValueError, "does not fit"),
    (lambda: dispatch.matmul(jnp.ones((3, 2, K)), jnp.ones((2, K, N))), ValueError, "does not fit"),
    (lambda: dispatch.index(jnp.ones((K, N)), 0), IndexError, "no batch axis"),
    (lambda: View.store(jnp.ones((6, 4)), (4, 5), (1,), (0,)), ValueError, "is \\(5, 4\\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
