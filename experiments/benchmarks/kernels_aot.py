"""Kernels compiled for TPUs that are not here: libtpu's estimate beside the roofline and beside XLA's bfloat16 product.

Cycles are the larger of libtpu's static estimate and the bytes over the bandwidth. None was checked on a chip.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.kernels_floor import beside, bits, compiled, said_beside
from experiments.benchmarks.kernels_peers import print_peers
from experiments.benchmarks.kernels_peers_table import PRODUCTS
from qjax.formats.elements import NF4
from qjax.formats.spelling import as_format
from qjax.kernels.aot.chips import CHIPS, Roofline, roofline
from qjax.kernels.aot.tpu import Estimate
from qjax.kernels.tpu import codings, dynamic_products, group_scaled, integer_products
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators import Hadamard, Quantize, fused_rounding
from qjax.quantization import steps

WEIGHTS = {  # weights alone are narrow: their coding, the length of a group and the type of its scale
    "w2a16": (codings.INT2, 128, jnp.float32),
    "w4a16": (codings.INT4, 128, jnp.float32),
    "w8a16": (codings.INT8, 128, jnp.float32),
    "fp8": (codings.E4M3, 128, jnp.float32),
    "mxfp4": (codings.E2M1, 32, jnp.float8_e8m0fnu),
    "nvfp4": (codings.E2M1, 16, jnp.float8_e4m3fn),
    "mxfp4pairs": (codings.E2M1_PAIRS, 32, jnp.float8_e8m0fnu),  # as they lie for v4
    "nvfp4pairs": (codings.E2M1_PAIRS, 16, jnp.float8_e4m3fn),
    "t4a16": (codings.TABLE4, 64, jnp.float32),  # NF4
    "k4a16": (codings.TABLE4, None, jnp.float32),  # k-means: a table a column, and no scale
}
INTEGERS = {"w8a8": jnp.int8, "w4a4": jnp.int4, "dynamic w8a8": jnp.int8}
ROTATED = ("hadamard w8a8", "XLA hadamard w8a8")  # all channels together; fused, and by XLA in front of the kernel
RULED = ("dynamic int8", "hadamard int8")  # with the codes and scales of the format int8, as operators have them
CHAIN = "XLA dynamic int8"  # the same codes, made by XLA in front of the product of codes
INTEGERS |= dict.fromkeys((*ROTATED, *RULED, CHAIN), jnp.int8)
KERNELS = ("bf16 XLA", *(f"{name} {scaled}" for name in WEIGHTS for scaled in ("sums", "codes")), *INTEGERS)
SIZES = ("4096x4096", "8192x28672", "576x1536")
ROWS = (16, 512, 2048)


def build(
    kernel: str, chip: str, M: int, K: int, N: int, tiling: Blocks | None = None
) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], Any]]]:
    """The function to compile, under the blocks of the chip where none are given, and its arguments' (shape, dtype)."""
    x = ((M, K), jnp.bfloat16)
    if kernel == "bf16 XLA":
        return functools.partial(jnp.dot, preferred_element_type=jnp.float32), [x, ((K, N), jnp.bfloat16)]
    if kernel in ("dynamic w8a8", *ROTATED, *RULED):
        tiling = dynamic_products.blocks(M, K, N, chip) if tiling is None else tiling
        rule = fused_rounding.rule(as_format("int8")) if kernel in RULED else None
        f = functools.partial(dynamic_products.matmul, tiling=tiling, rule=rule)
        if "hadamard" in kernel:
            f = functools.partial(rotated, f, fused="XLA" not in kernel)
        return f, [x, ((K, N), jnp.int8), ((N,), jnp.float32)]
    if kernel == CHAIN:
        tiling = integer_products.blocks(M, K, N, 8, chip) if tiling is None else tiling
        return functools.partial(chained, tiling=tiling), [x, ((K, N), jnp.int8), ((N,), jnp.float32)]
    if kernel in INTEGERS:
        codes = INTEGERS[kernel]
        scales = [((M,), jnp.float32), ((N,), jnp.float32)]
        tiling = integer_products.blocks(M, K, N, jnp.iinfo(codes).bits, chip) if tiling is None else tiling
        product = functools.partial(integer_products.matmul, tiling=tiling)
        return product, [((M, K), codes), ((K, N), codes), *scales]
    name, scaled = kernel.split()
    coding, group, scale = WEIGHTS[name]
    group = math.gcd(K, group or K)
    coding = codings.taken(coding, scaled, chip, group)
    tiling = group_scaled.blocks(M, K, N, group, coding, scaled, chip) if tiling is None else tiling
    codes, scales = ((K // coding.packed, N), coding.dtype), ((K // group, N), scale)
    product = functools.partial(group_scaled.matmul, coding=coding, tiling=tiling, scaled=scaled, interpret=False)
    table = NF4.values()[:, None]  # a constant: libtpu estimates no operation that lays out tables
    if name == "k4a16":
        table, scales = np.repeat(table, N, axis=1), ((1, 1), scale)
        return lambda x, codes, one: product(x, codes, jnp.broadcast_to(one, (1, N)), table=table), [x, codes, scales]
    return functools.partial(product, table=None if coding.lookup is None else table), [x, codes, scales]


def rotated(
    product: Callable[..., jax.Array], x: jax.Array, codes: jax.Array, scale: jax.Array, fused: bool
) -> jax.Array:
    """The product of x behind a Hadamard rotation of all its channels, in the kernel or by XLA in front of it."""
    if fused:
        return product(x, codes, scale, size=x.shape[1])
    return product(Hadamard(None, x.shape[1], sylvester=True).apply(x), codes, scale)


def chained(x: jax.Array, codes: jax.Array, scale: jax.Array, tiling: Blocks) -> jax.Array:
    """x rounded to the format int8 by XLA, and its codes multiplied by the kernel."""
    rounded = Quantize.dynamic("int8").codes(x)
    row, _ = steps(rounded)
    assert row is not None
    return integer_products.matmul(rounded.codes, codes, row[:, 0], scale, tiling)


def floor(kernel: str, chip: str, M: int, K: int, N: int) -> Roofline:
    """The least cycles of the product, its arguments read and its float32 result written once."""
    _, arguments = build(kernel, chip, M, K, N)
    moved = sum(bits(dtype) * math.prod(shape) for shape, dtype in arguments) / 8 + 4 * M * N
    rate = getattr(CHIPS[chip], str(jnp.dtype(INTEGERS[kernel]))) if kernel in INTEGERS else None
    return roofline(CHIPS[chip], 2 * M * K * N, moved, rate)


def issued(kernel: str, chip: str, M: int, K: int, N: int, found: Estimate, least: Roofline) -> dict[str, Any]:
    """For a chip without a model: the cycles of a kernel of scaled groups if none of its bundles waited.

    Its program, a block long, is issued once a block, on as many cores as the chip has, what stands around it once. Or
    the bytes over the bandwidth, if they take longer; and the speed against reading the weight in bfloat16.
    """
    name, _, scaled = kernel.partition(" ")
    if CHIPS[chip].estimated or name not in WEIGHTS or found.problem is not None:
        return {}
    coding, group, _ = WEIGHTS[name]
    coding, group = codings.taken(coding, scaled, chip, math.gcd(K, group)), math.gcd(K, group)
    rows, columns, depth, _ = group_scaled.blocks(M, K, N, group, coding, scaled, chip)
    blocks = -(-M // rows) * (K // depth) * math.ceil(N // columns / CHIPS[chip].cores)
    cycles = max(found.largest * blocks + found.bundles - found.largest, round(least.memory))
    return {"issued": cycles, "speed_of_bf16_floor": round(floor("bf16 XLA", chip, M, K, N).cycles / cycles, 2)}


def said_issued(record: dict[str, Any]) -> str:
    """The same in words; nothing where a record has none."""
    if "issued" not in record:
        return ""
    return f": {record['issued']} cycles if no bundle waits, {record['speed_of_bf16_floor']:.2f} of bfloat16's bytes"


def print_table(
    chips: Sequence[str],
    sizes: Sequence[str],
    rows: Sequence[int],
    kernels: Sequence[str],
    as_json: bool,
    peers: bool = False,
) -> None:
    """One line a kernel: cycles, share of the roofline, speed against bfloat16, bundles and spills; or the reason.

    With `peers`, public kernels of the same kind stand above it, and its speed against the fastest of them is said.
    """
    if not as_json:
        versions = f"jax {jax.__version__}, libtpu {metadata.version('libtpu')}"
        print(f"{versions}; static estimates, nothing measured on a chip")
    for chip in chips:
        for size in sizes:
            K, N = map(int, size.split("x"))
            for M in rows:
                print_shape(chip, M, K, N, kernels, as_json, peers)


def print_shape(chip: str, M: int, K: int, N: int, kernels: Sequence[str], as_json: bool, peers: bool = False) -> None:
    """The kernels of one shape, each after what it is compared with: bfloat16 first, the peers of a kind before it."""
    if not as_json:
        print(f"{chip}: [{M}, {K}] @ [{K}, {N}]", flush=True)
    base, best = None, {}
    for kernel in kernels:
        f, arguments = build(kernel, chip, M, K, N)
        least = floor(kernel, chip, M, K, N)
        kind = kernel if kernel in INTEGERS else kernel.split()[0]
        if peers and kind in PRODUCTS and kind not in best:
            best[kind] = print_peers(PRODUCTS[kind], kind, chip, (M, K, N), least, 2 * M * K * N, as_json)
        found, cycles = compiled(chip, f, arguments, least.memory)
        base = cycles if kernel == "bf16 XLA" else base
        record = {
            "chip": chip,
            "kernel": kernel,
            "shape": [M, K, N],
            "cycles": cycles,
            "estimated": found.cycles,
            "roofline": round(least.cycles),
            "bound": "memory" if least.memory > least.compute else "compute",
            "share": None if cycles is None else round(least.cycles / cycles, 3),
            "speed_of_bf16": None if cycles is None or base is None else round(base / cycles, 2),
            **beside(best.get(kind), cycles),
            **issued(kernel, chip, M, K, N, found, least),
            "bundles": found.bundles,
            "spills": found.spills,
            "problem": found.problem,
        }
        if as_json:
            print(json.dumps(record), flush=True)
        elif found.problem is not None:
            print(f"  {kernel:12s} not compiled: {found.problem}", flush=True)
        elif cycles is None:
            print(
                f"  {kernel:12s} compiled, no estimate{said_issued(record)}; {found.bundles} bundles,"
                f" {found.spills} spills",
                flush=True,
            )
        else:
            speed = "" if base is None else f"  {base / cycles:5.2f} of bfloat16's speed"
            print(
                f"  {kernel:12s} {cycles:9d} cycles (estimate {found.cycles})  {least.cycles / cycles:5.3f} of the"
                f" {record['bound']} roofline{speed}{said_beside(record)}"
                f"  {found.bundles} bundles, {found.spills} spills",
                flush=True,
            )
