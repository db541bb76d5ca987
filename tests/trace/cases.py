"""One small network (two matrices) under every construct a tracing test covers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tests import draw

PARAMS = {"a": draw.normal(0, 16, 32, scale=1 / 4), "b": draw.normal(1, 32, 16, scale=1 / 5)}
X = draw.normal(2, 3, 5, 16) * jnp.linspace(0.1, 3, 16)[None, None]
STACK = draw.normal(3, 3, 16, 16, scale=1 / 4)


def hidden(p, x):
    return jax.nn.relu(x @ p["a"])


def mlp(p, x):
    return hidden(p, x) @ p["b"]


@jax.custom_vjp
def keeps_vjp(x, a):
    return x @ a


keeps_vjp.defvjp(lambda x, a: (keeps_vjp(x, a), (x, a)), lambda r, g: (5.0 * g @ r[1].T, jnp.zeros_like(r[1])))


@jax.custom_jvp
def keeps_jvp(x, a):
    return x @ a


keeps_jvp.defjvp(lambda p, t: (keeps_jvp(*p), 3.0 * (t[0] @ p[1])))


ONE_PASS = {  # each row of X meets a, then b, once
    "plain": mlp,
    "jit": jax.jit(mlp),
    "remat": jax.checkpoint(mlp),
    "vmap": lambda p, x: jax.vmap(lambda v: mlp(p, v))(x),
    "microbatches": lambda p, x: lax.map(lambda v: mlp(p, v), x),
    "flattened": lambda p, x: mlp(p, x.reshape(15, 16)).reshape(3, 5, 16),
    "transposed": lambda p, x: jnp.swapaxes(mlp(p, jnp.swapaxes(x, 0, 1)), 0, 1),
    "time_loop": lambda p, x: jnp.swapaxes(lax.map(lambda v: mlp(p, v), jnp.swapaxes(x, 0, 1)), 0, 1),
    "einsum": lambda p, x: jnp.einsum("btf,fd->btd", jax.nn.relu(jnp.einsum("df,btd->btf", p["a"], x)), p["b"]),
    "cond": lambda p, x: lax.cond(jnp.float32(1) > 0, lambda v: mlp(p, v), lambda v: v, x),
    "custom_vjp": lambda p, x: jax.nn.relu(keeps_vjp(x, p["a"])) @ p["b"],
    "custom_jvp": lambda p, x: jax.nn.relu(keeps_jvp(x, p["a"])) @ p["b"],
    "carried": lambda p, x: lax.fori_loop(0, 1, lambda i, c: (c[0], mlp(c[0], c[1])), (p, x))[1],
}

LAYERS = {  # x meets the three layers of STACK in turn
    "scan": lambda w, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w)[0],
    "scan_remat": lambda w, x: lax.scan(jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None)), x, w)[0],
    "scan_unrolled": lambda w, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, w, unroll=3)[0],
    "microbatches_of_scan": lambda w, x: lax.map(lambda v: LAYERS["scan"](w, v), x),
    "python_loop": lambda w, x: jnp.tanh(jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]) @ w[2]),
}
