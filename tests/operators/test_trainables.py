"""Latent weights, and what an optimizer may see."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from qjax import dispatch
from qjax.operators import Diag, Latent, Pre, harden, lora, merge, straight_through, trainable
from qjax.quantization import dequantize, quantize
from tests.draw import normal


def tree():
    q = quantize(normal(0, 16, 4), "int4_g4")
    return {
        "layers": {
            "0": lora(q, 2, jax.random.key(1)),
            "1": Pre(Diag(jnp.ones(16)), quantize(normal(2, 16, 4), "nvfp4")),
        },
        "norm": jnp.ones(4),
        "steps": jnp.zeros((), jnp.int32),
        "qat": straight_through(normal(3, 16, 4), "int4_g4"),
    }


def equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(lambda x, y: x.dtype == y.dtype and bool((x == y).all()), a, b))
    )


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("lora", 2),
        ("latent", 1),
        ("scales", 2),  # int4's bfloat16 and nvfp4's float32 tensor scale, not its e4m3 codes
        ("maps", 1),
        ("norm", 1),
        ("layers/0/*", 3),
        (re.compile(r"ops/1/[ab]$"), 2),
        (lambda path, leaf: leaf.shape == (4,), 1),
        ("*", 7),
    ],
)
def test_cut_and_merge(where, count):
    whole = tree()
    train, frozen = trainable(whole, where)
    assert len(jax.tree.leaves(train)) == count
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(train))
    assert equal(merge(train, frozen), whole)


def test_an_optimizer_step_changes_only_what_was_chosen():
    whole, x = tree(), normal(4, 3, 16)
    train, frozen = trainable(whole, "lora")
    optimizer = optax.sgd(0.1)
    state = optimizer.init(train)

    def loss(train):
        return (dispatch.matmul(x, merge(train, frozen)["layers"]["0"]) ** 2).sum()

    updates, _ = optimizer.update(jax.grad(loss)(train), state)
    after = merge(optax.apply_updates(train, updates), frozen)
    assert bool((after["layers"]["0"].ops[1].b != 0).any())
    assert equal(after["layers"]["0"].ops[0], whole["layers"]["0"].ops[0]) and equal(after["qat"], whole["qat"])


@pytest.mark.parametrize("fmt", ["int4_g64", "int3_g4_affine_f32", "mxfp4", "nvfp4", "nf4_g64"])
def test_hardening_reproduces_the_last_forward_bit_for_bit(fmt):
    latent = straight_through(normal(0, 2, 16, 4), fmt)
    values = dequantize(harden({"w": latent})["w"])
    assert bool((dispatch.dense(latent) == values).all())
    assert bool((jax.jit(dispatch.dense)(latent) == values).all())
    gradient = jax.grad(lambda op: (dispatch.matmul(jnp.ones((2, 1, 16)), op)).sum())(latent)
    assert isinstance(gradient, Latent) and bool((gradient.w == 1).all())


def test_bad_input():
    whole = tree()
    with pytest.raises(ValueError, match="nothing matches 'lorra'"):
        trainable(whole, "lorra")
    with pytest.raises(ValueError, match="nothing matches"):
        trainable({"codes": whole["layers"]["0"].ops[0].codes}, "*")
    train, frozen = trainable(whole, "lora")
    with pytest.raises(ValueError, match="in both trees"):
        merge(whole, whole)
    with pytest.raises(ValueError, match="structure"):
        merge(train, {"other": frozen})
