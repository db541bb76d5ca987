"""Attention of the newest tokens over cached keys and values that are stored as codes, for TPUs.

Decoding reads the whole cache for one token of each sequence, so that reading it is what counts. Here codes go from
memory to the matrix unit as they are or as bfloat16, exactly, and no dequantized key or value is ever written: a token
has one scale in each head, which is common to all its channels, so that a key's meets its scores and a value's its
probabilities. Softmax runs over blocks of slots and carries its maximum and sum along (Milakov and Gimelshein 2018; for
attention FlashAttention, Dao et al. 2022): no row of scores is whole at any time, and memory does not grow with the
context. Blocks that no query sees are not read; that is planned in front of the kernel, from the slots alone.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu import tiles
from qjax.kernels.tpu.tiles import LANES

SUBLANES = 16  # rows of bfloat16 in one tile of registers
MASKED = -1e30  # finite: the difference of two of it is zero and no NaN
TYPES = (jnp.int4, jnp.int8, jnp.float8_e4m3fn, jnp.bfloat16)
MOST = (8, 1024)  # heads and slots of a block: in the cycles that their bytes take, their products are done
LIMIT = 48 << 20  # bytes of vector memory asked for; v5e, whose default is 16 MiB, has 128
SOME, ALL = 1, 2  # what the queries see of a block


class Held(NamedTuple):
    """Keys or values as they are stored: codes * scale."""

    codes: Array  # [batch, heads, capacity, dim] of a dtype in TYPES
    scale: Array  # a float, [batch, heads, capacity]


class Tiling(NamedTuple):
    """Heads and slots of the block that is in vector memory at a time."""

    heads: int
    slots: int


def refuse(heads: int, query_heads: int, capacity: int, dim: int, dtype: Any, chip: str | None = None) -> str | None:
    """Why the kernel cannot read a cache of these sizes, or None."""
    if jnp.dtype(dtype) not in TYPES:
        return f"codes are {jnp.dtype(dtype)}: it reads {', '.join(str(jnp.dtype(t)) for t in TYPES)}"
    if jnp.dtype(dtype) == jnp.float8_e4m3fn and chip == "v4":
        return "TPU v4 multiplies no floats of eight bits"
    if heads == 0 or query_heads % heads:
        return f"{query_heads} query heads cannot share {heads} key heads evenly"
    if dim == 0 or dim % (LANES // 2):
        return f"heads of {dim} channels are no multiple of {LANES // 2}"
    if capacity == 0:
        return "the cache has no slots"
    return None


def blocks(heads: int, capacity: int) -> Tiling:
    """The blocks taken where none are given.

    >>> blocks(8, 4096), blocks(3, 100)
    (Tiling(heads=8, slots=1024), Tiling(heads=3, slots=128))
    """
    return Tiling(tiles.divisor(heads, MOST[0], 1) or 1, min(MOST[1], -(-capacity // LANES) * LANES))


def attend(
    q: Array,
    keys: Held,
    values: Held,
    slots: Array | None = None,
    positions: Array | None = None,
    window: int | Array = 0,
    tiling: Tiling | None = None,
    interpret: Any = False,
) -> Array:
    """softmax(q @ keys^T) @ values for the few newest tokens of every sequence.

    q: [batch, tokens, query heads, dim], with the factor of the scores in it; query head h reads key head
    h // (query heads / heads). keys, values: `Held`, of one shape, each of its own dtype. slots: int32
    [batch, capacity], the position in each slot, negative where it is empty, in any order. positions: int32
    [batch, tokens] of the queries. A query sees what is not later than itself and, with a `window`, its latest `window`
    positions; window may be traced, 0 is no window. Without slots and positions every query sees every slot, and
    `tiling` must divide them. `interpret` goes to `pallas_call`.

    Returns float32 [batch, tokens, query heads, dim]; zeros for a query that sees nothing. q, and the probabilities
    times the scales of the values, are rounded to bfloat16; everything else is exact or float32. What lies in slots
    that no query sees, NaN included, has no influence. ValueError for what does not fit.

    >>> keys = values = Held(jnp.ones((1, 1, 128, 64), jnp.int8), jnp.ones((1, 1, 128), jnp.float32))
    >>> slots = jnp.arange(128, dtype=jnp.int32)[None]
    >>> y = attend(jnp.ones((1, 1, 2, 64)), keys, values, slots, jnp.array([[127]]), interpret=True)
    >>> y.shape, float(y[0, 0, 0, 0])
    ((1, 1, 2, 64), 1.0)
    """
    batch, tokens, query_heads, dim = _checked(q, keys, values, slots, positions)
    heads, capacity = keys.codes.shape[1:3]
    together, length = blocks(heads, capacity) if tiling is None else tiling
    count = pl.cdiv(capacity, length)
    if heads % together or length % LANES or (slots is None and capacity % length):
        raise ValueError(f"blocks of {together} heads and {length} slots do not divide {keys.codes.shape}")
    if batch * tokens == 0:
        return jnp.zeros(q.shape, jnp.float32)
    used = query_heads // heads * tokens
    rows = -(-used // SUBLANES) * SUBLANES
    # Those that share a key head lie together: one product for all of them.
    q = q.astype(jnp.bfloat16).reshape(batch, tokens, heads, query_heads // heads, dim).transpose(0, 2, 3, 1, 4)
    q = jnp.pad(q.reshape(batch, heads, used, dim), [(0, 0), (0, 0), (0, rows - used), (0, 0)])
    held = [part for side in (keys, values) for part in (side.codes, side.scale[:, :, None, :])]
    if slots is None or positions is None:
        kernel, tables, seen = _dense, [], []
    else:
        kernel = functools.partial(_masked, count=count)
        slots = jnp.pad(slots, [(0, 0), (0, count * length - capacity)], constant_values=-1)
        at = jnp.pad(jnp.tile(positions, (1, used // tokens)), [(0, 0), (0, rows - used)], constant_values=-1)
        window = jnp.asarray(window, jnp.int32).reshape(1)
        tables, seen = [*plan(slots, positions, window, length), window], [at[..., None], slots[:, None, :]]

    def here(b: Any, j: Any, tables: Any) -> Any:
        return tables[0][b * count + j] if tables else j

    codes = pl.BlockSpec((1, together, length, dim), lambda b, h, j, *t: (b, h, here(b, j, t), 0))
    scale = pl.BlockSpec((1, together, 1, length), lambda b, h, j, *t: (b, h, 0, here(b, j, t)))
    masks = [
        pl.BlockSpec((1, rows, 1), lambda b, h, j, *t: (b, 0, 0)),
        pl.BlockSpec((1, 1, length), lambda b, h, j, *t: (b, 0, here(b, j, t))),
    ]
    queries = pl.BlockSpec((1, together, rows, dim), lambda b, h, j, *t: (b, h, 0, 0))
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((batch, heads, rows, dim), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(tables),
            grid=(batch, heads // together, count),
            in_specs=[*masks[: len(seen)], queries, codes, scale, codes, scale],
            out_specs=queries,
            scratch_shapes=[
                pltpu.VMEM((together, rows, 1), jnp.float32),
                pltpu.VMEM((together, rows, 1), jnp.float32),
                pltpu.VMEM((together, rows, dim), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=LIMIT
        ),
        name="decode_attention",
        interpret=interpret,
    )
    y = call(*tables, *seen, q, *held)[:, :, :used]
    y = y.reshape(batch, heads, query_heads // heads, tokens, dim)
    return y.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, query_heads, dim)


def _checked(
    q: Array, keys: Held, values: Held, slots: Array | None, positions: Array | None
) -> tuple[int, int, int, int]:
    """The sizes of q; ValueError where something does not fit it."""
    if q.ndim != 4 or keys.codes.ndim != 4:
        raise ValueError(f"q {q.shape} and keys {keys.codes.shape} must have four axes each")
    batch, tokens, query_heads, dim = q.shape
    heads, capacity = keys.codes.shape[1:3]
    for name, side in (("keys", keys), ("values", values)):
        if side.codes.shape != (batch, heads, capacity, dim) or side.scale.shape != (batch, heads, capacity):
            raise ValueError(
                f"{name} {side.codes.shape} under scales {side.scale.shape} do not fit q {q.shape}: expected"
                f" {(batch, heads, capacity, dim)} and {(batch, heads, capacity)}"
            )
        why = refuse(heads, query_heads, capacity, dim, side.codes.dtype, tiles.chip())
        if why is not None:
            raise ValueError(f"{name} {side.codes.shape} cannot be attended to: {why}")
    if (slots is None) != (positions is None):
        raise ValueError("slots and positions belong together: one of them is missing")
    shapes = None if slots is None or positions is None else (slots.shape, positions.shape)
    if shapes not in (None, ((batch, capacity), (batch, tokens))):
        raise ValueError(f"slots and positions {shapes} must be {((batch, capacity), (batch, tokens))}")
    return batch, tokens, query_heads, dim


def visible(slots: Array, positions: Array, window: Array) -> Array:
    """Which slots queries see, from int32 that broadcast; a window of 0 is none."""
    return (slots >= 0) & (slots <= positions) & ((window == 0) | (positions - slots < window))


def plan(slots: Array, positions: Array, window: Array, length: int) -> tuple[Array, Array]:
    """(the block in memory at each step, what is seen of it) int32 [batch * blocks] each; window int32 [1].

    At a block that nobody sees the last one before it that is seen stays, or else the first to come is there early.
    """
    batch, count = slots.shape[0], slots.shape[1] // length
    seen = visible(slots[:, None, :], positions[:, :, None], window[:, None, None])
    seen = seen.reshape(batch, -1, count, length)
    some, every = seen.any((1, 3)), seen.all((1, 3))
    steps = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))
    latest = lax.cummax(jnp.where(some, steps, jnp.full_like(steps, -1)), axis=1)
    first = jnp.argmax(some, axis=1).astype(jnp.int32)
    kind = some.astype(jnp.int32) + every.astype(jnp.int32)
    return jnp.maximum(latest, first[:, None]).reshape(-1), kind.reshape(-1)


def _dense(q: Any, k: Any, k_scale: Any, v: Any, v_scale: Any, y: Any, top: Any, total: Any, mixed: Any) -> None:
    """One block, all of it seen."""
    _begin(top, total, mixed)
    _take(q, k, k_scale, v, v_scale, top, total, mixed, None)
    _finish(y, total, mixed, pl.num_programs(2))


def _masked(
    fetched: Any,
    kinds: Any,
    window: Any,
    at: Any,
    slots: Any,
    q: Any,
    k: Any,
    k_scale: Any,
    v: Any,
    v_scale: Any,
    y: Any,
    top: Any,
    total: Any,
    mixed: Any,
    *,
    count: int,
) -> None:
    """One block, as far as it is seen."""
    del fetched  # the blocks are there
    kind = kinds[pl.program_id(0) * count + pl.program_id(2)]
    _begin(top, total, mixed)

    @pl.when(kind == ALL)
    def _() -> None:
        _take(q, k, k_scale, v, v_scale, top, total, mixed, None)

    @pl.when(kind == SOME)
    def _() -> None:
        _take(q, k, k_scale, v, v_scale, top, total, mixed, visible(slots[0], at[0], window[0]))

    _finish(y, total, mixed, count)


def _begin(top: Any, total: Any, mixed: Any) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        top[...] = jnp.full_like(top, MASKED)
        total[...] = jnp.zeros_like(total)
        mixed[...] = jnp.zeros_like(mixed)


def _take(
    q: Any, k: Any, k_scale: Any, v: Any, v_scale: Any, top: Any, total: Any, mixed: Any, seen: Array | None
) -> None:
    """Bring a block into the running softmax of its heads; `seen` [rows, slots], None for all of it."""
    s = _product(q[0], _operand(k[0]), 2) * k_scale[0].astype(jnp.float32)
    s = s if seen is None else jnp.where(seen[None], s, MASKED)
    peak = jnp.maximum(top[...], jnp.max(s, axis=2, keepdims=True))
    p = jnp.exp(s - peak)
    weight = p * v_scale[0].astype(jnp.float32)
    value = _operand(v[0])
    if seen is not None:
        p, weight = jnp.where(seen[None], p, 0.0), jnp.where(seen[None], weight, 0.0)
        value = _kept(value, seen)
    shrink = jnp.exp(top[...] - peak)
    top[...] = peak
    total[...] = total[...] * shrink + jnp.sum(p, axis=2, keepdims=True)
    mixed[...] = mixed[...] * shrink + _product(weight.astype(jnp.bfloat16), value, 1)


def _finish(y: Any, total: Any, mixed: Any, count: Any) -> None:
    @pl.when(pl.program_id(2) == count - 1)
    def _() -> None:
        y[0] = mixed[...] / jnp.where(total[...] == 0, 1.0, total[...])


def _operand(codes: Array) -> Array:
    """What the matrix unit is given for codes."""
    return codes if codes.dtype == jnp.float8_e4m3fn else codes.astype(jnp.bfloat16)


def _kept(value: Array, seen: Array) -> Array:
    """Values [heads, slots, dim] with zeros in slots that no row sees: zero times a NaN is one."""
    some = jnp.max(seen.astype(jnp.float32), axis=0, keepdims=True)
    some = jnp.broadcast_to(some, value.shape[:0:-1]).T > 0
    return jnp.where(some[None], value.astype(jnp.float32), 0.0).astype(jnp.bfloat16)


def _product(x: Array, y: Array, axis: int) -> Array:
    """x [heads, m, n] times y along its axis, in float32; the two may have different types."""
    return lax.dot_general(x, y, (((2,), (axis,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def reference(
    q: Array,
    keys: Held,
    values: Held,
    slots: Array | None = None,
    positions: Array | None = None,
    window: int | Array = 0,
) -> Array:
    """What `attend` computes, with keys and values dequantized and everything in float32, by XLA on any platform."""
    batch, tokens, query_heads, dim = _checked(q, keys, values, slots, positions)
    heads, capacity = keys.codes.shape[1:3]
    k, v = (side.codes.astype(jnp.float32) * side.scale.astype(jnp.float32)[..., None] for side in (keys, values))
    grouped = q.astype(jnp.float32).reshape(batch, tokens, heads, query_heads // heads, dim)
    seen = jnp.ones((batch, tokens, capacity), bool)
    if slots is not None and positions is not None:
        seen = visible(slots[:, None, :], positions[:, :, None], jnp.asarray(window, jnp.int32).reshape(1, 1, 1))
    v = jnp.where(seen.any(1)[:, None, :, None], v, jnp.zeros_like(v))
    s = jnp.einsum("btkgd,bksd->bkgts", grouped, k, precision="highest")
    seen = jnp.broadcast_to(seen[:, None, None], s.shape)
    p = jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, jnp.full_like(s, MASKED)), axis=-1), jnp.zeros_like(s))
    y = jnp.einsum("bkgts,bksd->btkgd", p, v, precision="highest")
    return y.reshape(q.shape)
