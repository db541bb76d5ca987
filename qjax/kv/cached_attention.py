"""Attention of the newest tokens over quantized caches in one call, by the kernel for TPUs where that can read them."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.elements import E4M3
from qjax.formats.integer import Int
from qjax.kv.attention import MASKED, grouped_mix, grouped_scores, visible
from qjax.kv.quantized_cache import QuantizedState, seen_by_attention
from qjax.operators.narrow_codes import refuse_platform
from qjax.qarray import FULL, QArray


def decode_attention(
    q: Array,
    keys: QuantizedState,
    values: QuantizedState,
    positions: Array,
    window: int | Array = 0,
    *,
    implementation: Literal["xla", "mosaic"] | None = None,
) -> Array:
    """softmax(scores of the keys) @ values: what `scores` and `mix` of `QuantizedCache` are for, with softmax between.

    q: [batch, tokens, query heads, dim] with the factor of the scores in it. positions: int32 [batch, tokens]; a query
    sees what the caches hold up to its own position, within the latest `window` (an int or a traced one; 0 for all).
    Returns float32 [batch, tokens, query heads, dim], zeros where a query sees nothing.

    "mosaic" is the kernel of `qjax.kernels.tpu.decode_attention`: it reads a byte a channel, a float32 cache's quarter,
    and holds no row of scores whole. It rounds q and the probabilities, times their scales, to bfloat16. With None it
    is taken where `refuse_kernel` has nothing against it.

    >>> from qjax.kv import QuantizedCache
    >>> cache, at = QuantizedCache("int8"), jnp.array([[0, 1]])
    >>> state = cache.append(cache.init(1, 4, 1, 2), jnp.ones((1, 2, 1, 2)), at)
    >>> decode_attention(jnp.ones((1, 1, 3, 2)), state, state, at[:, 1:]).round(2).tolist()
    [[[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]]]

    Raises:
        ValueError: the named implementation cannot run, and why; shapes that do not fit.
    """
    why = refuse_kernel(keys, values, q.shape[2], jax.default_backend())
    if implementation == "mosaic" and why is not None:
        raise ValueError(f"decode_attention: the kernel 'mosaic' cannot run: {why}")
    if implementation == "xla" or why is not None:
        return _by_xla(q, keys, values, positions, window)
    return _by_kernel(q, keys, values, positions, window)


def refuse_kernel(keys: QuantizedState, values: QuantizedState, query_heads: int, platform: str) -> str | None:
    """Why the kernel cannot attend to these caches on a platform, or None."""
    why = refuse_platform(platform)
    for name, state in (("keys", keys), ("values", values)):
        why = why or refuse_state(name, state)
    if why is not None:
        return why
    from qjax.kernels.tpu import decode_attention, tiles

    _, heads, capacity, dim = keys.values.array.codes.shape
    for state in (keys, values):
        why = why or decode_attention.refuse(heads, query_heads, capacity, dim, _dtype(state), tiles.chip())
    return why


def refuse_state(name: str, state: QuantizedState) -> str | None:
    """Why the kernel cannot read a cache whatever the chip, or None: it takes a byte a channel, a scale a token."""
    array: QArray = state.values.array
    meta, dim = array.meta, array.codes.shape[-1]
    if meta.element != E4M3 and not (isinstance(meta.element, Int) and meta.element.signed and meta.element.bits <= 8):
        return f"{name} are {meta.element.name}: the kernel reads signed integers of at most 8 bits, and E4M3"
    if meta.offset is not None:
        return f"{name} have a {meta.offset}: the kernel takes scales alone"
    if meta.block != (FULL,) and meta.block != (dim,):
        return f"{name} have blocks of {meta.block[0]} of {dim} channels: the kernel takes a scale a token and head"
    if len(array.scales) != 1 or isinstance(array.scales[0], QArray):
        return f"{name} have scales of scales: the kernel takes one a token and head"
    if state.prefix.shape[2]:
        return f"{name} keep the first {state.prefix.shape[2]} positions in float32 beside their codes"
    return None


def _dtype(state: QuantizedState) -> Any:
    return jnp.float8_e4m3fn if state.values.array.meta.element == E4M3 else jnp.int8


def _by_kernel(
    q: Array,
    keys: QuantizedState,
    values: QuantizedState,
    positions: Array,
    window: int | Array,
    interpret: bool = False,
) -> Array:
    from qjax.kernels.tpu.decode_attention import Held, attend  # Pallas takes a second to import

    def held(state: QuantizedState) -> Held:
        codes, scale = state.values.array.codes, state.values.array.scales[0]
        assert not isinstance(scale, QArray)  # `refuse_state`
        return Held(lax.bitcast_convert_type(codes, _dtype(state)), scale[..., 0])

    y: Array = attend(q, held(keys), held(values), keys.slots, positions, window, interpret=interpret)
    return y


def _by_xla(q: Array, keys: QuantizedState, values: QuantizedState, positions: Array, window: int | Array) -> Array:
    """The same with both caches dequantized whole, whatever their format."""
    window = jnp.asarray(window, jnp.int32).reshape(1, 1, 1, 1)
    age = positions[:, None, :, None] - keys.slots[:, None, None, :]
    seen = visible(positions, keys.slots) & ((window == 0) | (age < window))
    s = grouped_scores(q.astype(jnp.float32), seen_by_attention(keys))
    seen = jnp.broadcast_to(seen, s.shape)
    p = jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, jnp.full_like(s, MASKED)), axis=-1), jnp.zeros_like(s))
    v = seen_by_attention(values)
    # Zero times a NaN is one: what nobody sees is zero.
    return grouped_mix(p, jnp.where(seen.any((1, 2))[:, None, :, None], v, jnp.zeros_like(v)))
