"""Decode attention over cached codes, compiled for TPUs that are not here: libtpu's estimate beside the roofline.

32 sequences of one new token, 32 query heads on 8 key heads of 128 channels, 1024 slots that are all seen: a block of
the kernel is then one piece of memory, which libtpu's estimate can follow (it has none for copies with strides, nor for
the tables of what is seen). Cycles are the larger of the estimate and the bytes over the bandwidth. None was checked on
a chip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from experiments.benchmarks.kernels_floor import print_line
from experiments.benchmarks.kernels_peers import print_peers
from experiments.benchmarks.kernels_peers_attention import ATTENTION
from qjax.kernels.aot.chips import CHIPS, Roofline, roofline
from qjax.kernels.tpu import decode_attention
from qjax.kernels.tpu.decode_attention import Held

CODES = {"bf16": (jnp.bfloat16, 16), "int8": (jnp.int8, 8), "fp8": (jnp.float8_e4m3fn, 8), "int4": (jnp.int4, 4)}
BATCH, QUERY_HEADS, HEADS, CAPACITY, DIM = 32, 32, 8, 1024, 128


def build(codes: str) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], Any]]]:
    """The function to compile, and its arguments' (shape, dtype)."""
    dtype, _ = CODES[codes]
    cached, scale = ((BATCH, HEADS, CAPACITY, DIM), dtype), ((BATCH, HEADS, CAPACITY), jnp.float32)
    return (
        lambda q, k, k_scale, v, v_scale: decode_attention.attend(q, Held(k, k_scale), Held(v, v_scale)),
        [((BATCH, 1, QUERY_HEADS, DIM), jnp.bfloat16), cached, scale, cached, scale],
    )


def floor(codes: str, chip: str) -> Roofline:
    """The least cycles: both products, and every code and scale read once."""
    slots = BATCH * HEADS * CAPACITY
    moved = 2 * slots * (DIM * CODES[codes][1] / 8 + 4)
    return roofline(CHIPS[chip], 4 * slots * DIM * QUERY_HEADS / HEADS, moved)


def print_table(chips: Sequence[str], kinds: Sequence[str], as_json: bool, peers: bool = False) -> None:
    """One line for each kind of codes: cycles, share of the roofline, speed against bfloat16's floor; or the reason.

    With `peers`, public kernels over the same codes stand above it.
    """
    sizes = (BATCH, QUERY_HEADS, HEADS, CAPACITY, DIM)
    if not as_json:
        print(f"attention: [{BATCH}, 1, {QUERY_HEADS}, {DIM}] over [{BATCH}, {HEADS}, {CAPACITY}, {DIM}]", flush=True)
    for chip in chips:
        for codes in kinds:
            least, base, best = floor(codes, chip), floor("bf16", chip), None
            if peers:
                operations = 4 * BATCH * CAPACITY * DIM * QUERY_HEADS
                best = print_peers(ATTENTION[codes], f"attention {codes}", chip, sizes, least, operations, as_json)
            print_line(chip, f"attention {codes}", *build(codes), least, base, as_json, best)
