"""Kernels compiled for GPUs that are not here: registers, spills, the main loop's instructions and its matrix opcode.

Counts of instructions, not times.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from qjax.kernels.aot import gpu
from qjax.kernels.gpu import block_scaled, codings, group_scaled, row_scaled

CODINGS = {coding.name: coding for coding in (codings.INT4, codings.INT8, codings.E4M3)}  # of weights alone, on Hopper
ROW_SCALED = {"w8a8": jnp.int8, "fp8": jnp.float8_e4m3fn}  # codes of both operands, on Hopper
KERNELS = {"H100": (*CODINGS, *ROW_SCALED), "B200": ("nvfp4", "mxfp4", "mxfp8")}
FORMATS = {  # codes and scales of what the tensor core of Blackwell multiplies
    "nvfp4": (jnp.float4_e2m1fn, jnp.float8_e4m3fn),
    "mxfp4": (jnp.float4_e2m1fn, jnp.float8_e8m0fnu),
    "mxfp8": (jnp.float8_e4m3fn, jnp.float8_e8m0fnu),
}
SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)")  # outputs, rows of x and depth of one WGMMA, in its opcode


def build(kernel: str, M: int, K: int, N: int) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], Any]]]:
    """The function to compile and its arguments' (shape, dtype)."""
    if kernel in FORMATS:
        codes, scale = FORMATS[kernel]
        packed = [(block_scaled.packed_shape(rows, K, scale), scale) for rows in (M, N)]
        return block_scaled.matmul, [((M, K), codes), ((N, K), codes), *packed]
    step = group_scaled.depth(K)
    if kernel in ROW_SCALED:
        codes, scales = ROW_SCALED[kernel], [((M,), jnp.float32), ((N,), jnp.float32)]
        return row_scaled.matmul, [((M, K), codes), ((K // step, N, step), codes), *scales]
    group, coding = step, CODINGS[kernel]
    f = functools.partial(group_scaled.matmul, tiling=group_scaled.tiles(M, K, N, group), coding=coding)
    words, scale = ((K // step, N, step // coding.lanes), coding.dtype), ((K // group, N), jnp.float32)
    return f, [((M, K), jnp.bfloat16), words, scale]


def print_table(chips: Sequence[str], sizes: Sequence[str], rows: Sequence[int], as_json: bool) -> None:
    """One line a kernel, chip and shape, or the reason why it did not compile."""
    if not as_json:
        versions = f"jax {jax.__version__}, nvcc {metadata.version('nvidia-cuda-nvcc')}"
        print(f"{versions}; what the compiler made, not times")
    for chip in chips:
        for kernel in KERNELS[chip]:
            for size in sizes:
                K, N = map(int, size.split("x"))
                for M in rows:
                    print_shape(chip, kernel, M, K, N, as_json)


def tile(found: gpu.Code) -> dict[str, int]:
    """The main loop's instructions for 128 x 128 weights, and the rows of x that share them."""
    shape = SHAPE.search(found.opcode or "")
    if shape is None:
        return {}
    outputs, rows, depth = map(int, shape.groups())
    return {"tile": round(found.instructions * 128 * 128 / (outputs * depth * found.products)), "rows": rows}


def print_shape(chip: str, kernel: str, M: int, K: int, N: int, as_json: bool) -> None:
    """The kernel at one shape; its main loop also for a tile of 128 x 128 weights, the unit of comparison."""
    f, arguments = build(kernel, M, K, N)
    found = gpu.compiled(gpu.GPUS[chip], f, *arguments)
    record = {"chip": chip, "kernel": kernel, "shape": [M, K, N]} | found._asdict() | tile(found)
    if as_json:
        print(json.dumps(record), flush=True)
    elif found.problem is not None:
        print(f"  {chip} {kernel} [{M}, {K}] @ [{K}, {N}]: not compiled: {found.problem}", flush=True)
    else:
        per = f" ({record['tile']} for 128 x 128 weights and {record['rows']} rows)" if "tile" in record else ""
        print(
            f"  {chip} {kernel} [{M}, {K}] @ [{K}, {N}]: {found.registers} registers, {found.spills} spills, main loop"
            f" {found.instructions} instructions{per}, {found.products} {found.opcode}",
            flush=True,
        )
