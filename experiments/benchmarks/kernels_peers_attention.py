"""The public kernels that stand beside attention of one new token a sequence over a cache of codes.

Sizes are (sequences, query heads, key heads, slots, channels). Pages are of 128 slots, and eight of them are read at a
time where the kernel asks how many. jax's paged attention reads int8 under a scale a token, widened to one a channel
in front of the kernel; its ragged paged attention has one scale for all keys and one for all values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernels_peers import Built, Peer

PAGE = 128
OPS = "jax.experimental.pallas.ops.tpu"
PAGED = "which page is read is known at run time alone, which the estimate does not follow"


def _xla(dtype: Any) -> Callable[..., Built]:
    def build(chip: str, batch: int, queries: int, heads: int, slots: int, dim: int) -> Built:
        def attend(q: jax.Array, k: jax.Array, k_scale: jax.Array, v: jax.Array, v_scale: jax.Array) -> jax.Array:
            groups = q.reshape(batch, heads, queries // heads, dim)
            keys, values = k.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
            scores = jnp.einsum("bhgd,bhsd->bhgs", groups, keys, preferred_element_type=jnp.float32)
            probabilities = jax.nn.softmax(scores * k_scale[:, :, None], axis=-1) * v_scale[:, :, None]
            return jnp.einsum(
                "bhgs,bhsd->bhgd", probabilities.astype(jnp.bfloat16), values, preferred_element_type=jnp.float32
            )

        cached, scale = ((batch, heads, slots, dim), dtype), ((batch, heads, slots), jnp.float32)
        return Built(attend, [((batch, queries, dim), jnp.bfloat16), cached, scale, cached, scale], 0)

    return build


def _paged(dtype: Any) -> Callable[..., Built]:
    def build(chip: str, batch: int, queries: int, heads: int, slots: int, dim: int) -> Built:
        attention = importlib.import_module(f"{OPS}.paged_attention").paged_attention
        held = importlib.import_module(f"{OPS}.paged_attention.quantization_utils").QuantizedTensor
        pages = slots // PAGE

        def attend(q: jax.Array, lengths: jax.Array, table: jax.Array, *cached: jax.Array) -> jax.Array:
            keys, values = cached if len(cached) == 2 else (held(*cached[:2]), held(*cached[2:]))
            return attention(q, keys, values, lengths, table, pages_per_compute_block=min(8, pages))

        shape = (heads, batch * pages, PAGE)
        one = [((*shape, dim), dtype)] + ([((*shape, 1), jnp.float32)] if dtype == jnp.int8 else [])
        others = [((batch, queries, dim), jnp.bfloat16), ((batch,), jnp.int32), ((batch, pages), jnp.int32)]
        return Built(attend, [*others, *one, *one], 0)

    return build


def _ragged(dtype: Any) -> Callable[..., Built]:
    def build(chip: str, batch: int, queries: int, heads: int, slots: int, dim: int) -> Built:
        attention = importlib.import_module(f"{OPS}.ragged_paged_attention").ragged_paged_attention
        pages, scale = slots // PAGE, None if dtype == jnp.bfloat16 else 1.0

        def attend(q: jax.Array, cached: jax.Array, lengths: jax.Array, table: jax.Array) -> jax.Array:
            starts, number = jnp.arange(batch + 1, dtype=jnp.int32), jnp.full((1,), batch, jnp.int32)
            blocks = {"num_kv_pages_per_block": min(8, pages), "num_queries_per_block": 1}
            return attention(q, cached, lengths, table, starts, number, k_scale=scale, v_scale=scale, **blocks)

        cached = ((batch * pages, PAGE, 2 * heads, dim), dtype)
        others = [((batch,), jnp.int32), ((batch, pages), jnp.int32)]
        return Built(attend, [((batch, queries, dim), jnp.bfloat16), cached, *others], 0)

    return build


def _peers(dtype: Any, pages: bool) -> tuple[Peer, ...]:
    paged = (Peer("jax paged_attention", _paged(dtype), None, PAGED),) if pages else ()
    ragged = Peer("jax ragged_paged_attention", _ragged(dtype), None, PAGED)
    return (Peer("XLA", _xla(dtype)), *paged, ragged)


ATTENTION = {
    "bf16": _peers(jnp.bfloat16, True),
    "int8": _peers(jnp.int8, True),
    "fp8": _peers(jnp.float8_e4m3fn, False),
    "int4": (Peer("XLA", _xla(jnp.int4)),),
}
