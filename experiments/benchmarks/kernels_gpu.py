"""The Hopper kernels timed on the GPU that is here, beside XLA's bfloat16 product and what others have published.

Times are those of the kernels alone, read from CUPTI: launches, which a decoder records once and replays, are left out.
A call multiplies with as many weights in turn as do not fit the chip's cache together. PyTorch's products are timed by
`peer_torch_int4` in a process of its own, with the same shapes and the same rule.
"""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernels_sass import ROW_SCALED
from experiments.benchmarks.peer_torch_int4 import count
from qjax.kernels.aot.gpu import GPUS
from qjax.kernels.gpu import codings, group_scaled, row_scaled
from qjax.kernels.gpu.codings import Coding
from qjax.kernels.gpu.group_scaled import Tiles

PEAK = 989e12  # bfloat16 operations a second of an H100
GROUPS = (128, 64)


class Timed(NamedTuple):
    """One way to multiply: bits that it reads of a weight, microseconds, relative error where it was compared."""

    name: str
    bits: float
    microseconds: float
    error: float | None = None


def print_table(sizes: Sequence[str], rows: Sequence[int], repeats: int, tune: bool, as_json: bool) -> None:
    """A line for every shape and way to multiply; with `tune` a line for every tiling of the kernel instead."""
    device = jax.devices()[0]
    bandwidth = next((g.bandwidth for g in GPUS.values() if g.name == device.device_kind), None)
    print(f"jax {jax.__version__}, {device.device_kind}; times of kernels, the median of {repeats}", flush=True)
    shapes = [(M, *map(int, size.split("x"))) for size, M in itertools.product(sizes, rows)]
    shapes = [(M, K, N, next(g for g in GROUPS if K % g == 0)) for M, K, N in shapes]
    theirs = {} if tune else torch_products(shapes, repeats)
    for M, K, N, group in shapes:
        found = tilings(M, K, N, group, repeats) if tune else products(M, K, N, group, repeats)
        found = itertools.chain(found, theirs.get((M, K, N, group), ()))
        base = None
        for way in found:
            base = way.microseconds if base is None and not tune else base  # XLA's bfloat16 comes first
            record = {"shape": [M, K, N], "group": group, "name": way.name, "us": way.microseconds, "error": way.error}
            if bandwidth is not None:
                record["roofline"] = floor(M, K, N, way.bits, bandwidth) / way.microseconds
            if base is not None:
                record["speed"] = base / way.microseconds
            print(json.dumps(record) if as_json else line(record), flush=True)


def line(record: dict[str, Any]) -> str:
    """A record for people."""
    M, K, N = record["shape"]
    told = f"  [{M}, {K}] @ [{K}, {N}] {record['name']:44s} {record['us']:9.2f} us"
    told += f"  {record['speed']:5.2f} of bfloat16's speed" if "speed" in record else ""
    told += f"  {record['roofline']:.2f} of the roofline" if "roofline" in record else ""
    return told + (f"  relative error {record['error']:.1e}" if record["error"] is not None else "")


def floor(M: int, K: int, N: int, bits: float, bandwidth: float) -> float:
    """Microseconds below which no kernel of this kind can be: weight, input and output moved once, or all products."""
    return 1e6 * max((K * N * bits / 8 + 2 * M * K + 2 * M * N) / bandwidth, 2 * M * K * N / PEAK)


def products(M: int, K: int, N: int, group: int, repeats: int) -> Iterator[Timed]:
    """Every way to multiply, bfloat16 first; errors are those of the first product."""
    x, words, scale = operands(M, K, N, group, codings.INT4)
    dense = [jax.random.normal(key, (K, N), jnp.bfloat16) for key in keys(2 * K * N)]
    yield Timed("xla bfloat16", 16, kernel_time(lambda x, w: x @ w, x, [(w,) for w in dense], repeats))
    del dense
    weights = list(zip(words, scale, strict=True))
    expected = jax.jit(group_scaled.reference)(x, *weights[0])
    own = functools.partial(group_scaled.matmul, dtype=jnp.bfloat16)
    for name, f in (("w4a16", own), ("xla dequantize, w4a16", dequantized)):
        time = kernel_time(f, x, weights, repeats)
        yield Timed(name, 4 + 32 / group, time, error(jax.jit(f)(x, *weights[0]), expected))
    for coding in (codings.INT8, codings.E4M3):
        _, words, scale = operands(M, K, N, group, coding)
        weights = list(zip(words, scale, strict=True))
        expected = jax.jit(functools.partial(group_scaled.reference, coding=coding))(x, *weights[0])
        f = functools.partial(own, coding=coding)
        time = kernel_time(f, x, weights, repeats)
        yield Timed(coding.name, 8 + 32 / group, time, error(jax.jit(f)(x, *weights[0]), expected))
    for name, dtype in ROW_SCALED.items():
        left, *weights = coded(M, K, N, dtype)
        expected = jax.jit(row_scaled.reference)(left, *weights[0])
        time = kernel_time(row_scaled.matmul, left, weights, repeats)
        yield Timed(name, 8, time, error(jax.jit(row_scaled.matmul)(left, *weights[0]), expected))
    mixed = mixed_types(M, K, N, repeats)
    if mixed is not None:
        yield Timed("jax pallas mixed int8, no scales", 8, mixed)


def error(y: jax.Array, expected: jax.Array) -> float:
    """The Frobenius norm of what differs, relative to that of the result."""
    return float(jnp.linalg.norm((y.astype(jnp.float32) - expected).ravel()) / jnp.linalg.norm(expected.ravel()))


def dequantized(x: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
    """What XLA makes of the product where no kernel is taken."""
    codes = codings.unpack(words, codings.INT4, "bfloat16")
    weight = codes * jnp.repeat(scale.astype(jnp.bfloat16), x.shape[1] // scale.shape[0], axis=0)
    return jnp.dot(x, weight)


def tilings(M: int, K: int, N: int, group: int, repeats: int) -> Iterator[Timed]:
    """Every tiling worth a try, as they are compiled; the one that is taken by itself is marked."""
    x, words, scale = operands(M, K, N, group, codings.INT4)
    weights = list(zip(words, scale, strict=True))
    expected = jax.jit(group_scaled.reference)(x, *weights[0])
    taken = group_scaled.tiles(M, K, N, group)
    candidates = sorted({taken, *candidate_tiles(M, K, N, group)})

    def build(tiling: Tiles) -> Any:
        f = functools.partial(group_scaled.matmul, tiling=tiling)
        try:
            return in_turn(f).lower(x, weights).compile()
        except Exception as problem:  # out of shared memory, most often: said, and left out
            return str(problem).strip().splitlines()[0][:100]

    with ThreadPoolExecutor() as pool:
        for tiling, made in zip(candidates, pool.map(build, candidates), strict=True):
            name = f"{tuple(tiling)}{' taken' if tiling == taken else ''}"
            if isinstance(made, str):
                print(f"    {name}: {made}", flush=True)
                continue
            time = measured(made, x, weights, repeats)
            yield Timed(name, 4 + 32 / group, time, error(made(x, weights)[0], expected))


def candidate_tiles(M: int, K: int, N: int, group: int) -> Iterator[Tiles]:
    """Tiles worth a try: accumulators that fit, no more than four waves of blocks, two steps or more in a part."""
    steps = K // group_scaled.depth(group)
    rows_of_x = [rows for rows in (8, 16, 32, 64, 128) if rows < 2 * max(M, 8) and (rows >= min(M, 64))]
    for outputs, rows, buffers, splits, warpgroups, turn in itertools.product(
        (64, 128), rows_of_x, (2, 3, 4, 6), (1, 2, 4, 8, 16), (1, 2), (1, 2)
    ):
        blocks, step = N // outputs * -(-M // rows), group_scaled.depth(group)
        whole = turn == 1 or group == step or group // step % turn == 0
        fits = N % outputs == 0 and outputs % (64 * warpgroups) == 0 and steps % (splits * turn) == 0 and whole
        registers = outputs // warpgroups * rows <= 64 * 128
        shared = buffers * turn * (outputs * 64 + rows * 256) <= 200 * 1024
        if fits and registers and shared and steps // splits >= 2 * turn and (splits == 1 or blocks * splits <= 1056):
            yield Tiles(outputs, rows, buffers, splits, warpgroups, turn)


def operands(M: int, K: int, N: int, group: int, coding: Coding) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """x [M, K] bfloat16, and packed codes and scales of random weights, as many as overflow the cache."""
    x = jax.random.normal(jax.random.key(0), (M, K), jnp.bfloat16)
    step, size = group_scaled.depth(group), K * N * coding.bits // 8
    entry = f"uint{8 * jnp.dtype(coding.dtype).itemsize}"
    kept = jnp.asarray(0xEF if coding == codings.E4M3 else jnp.iinfo(entry).max, entry)  # no code is NaN
    drawn = [jax.random.bits(k, (K // step, N, step // coding.lanes), entry) & kept for k in keys(size)]
    stored = [jax.lax.bitcast_convert_type(bits, coding.dtype) for bits in drawn]
    return x, stored, [jax.random.uniform(k, (K // group, N), minval=0.5) for k in keys(size)]


def coded(M: int, K: int, N: int, dtype: Any) -> list[Any]:
    """Codes [M, K] of x, and for every weight its codes as the kernel reads them with scales [M] and [N]."""
    step, finite = group_scaled.depth(K), jnp.uint8(255 if dtype == jnp.int8 else 0xEF)  # no code of E4M3 is NaN

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, "uint8") & finite, dtype)

    scales = jnp.full(M, 2.0**-7), jnp.full(N, 2.0**-7)
    return [draw(jax.random.key(0), (M, K)), *((draw(key, (K // step, N, step)), *scales) for key in keys(K * N))]


def keys(size: int) -> jax.Array:
    """One for every weight of `size` bytes."""
    return jax.random.split(jax.random.key(1), count(size))


def in_turn(f: Callable[..., jax.Array]) -> Any:
    """f on the same x and each of a list of weights, one after another."""
    one = jax.jit(f)
    return jax.jit(lambda x, weights: [one(x, *weight) for weight in weights])


def kernel_time(f: Callable[..., jax.Array], x: jax.Array, weights: Sequence[Any], repeats: int) -> float:
    """Microseconds that the kernels of f(x, *weight) take, the median over calls and the mean over weights."""
    return measured(in_turn(f).lower(x, weights).compile(), x, weights, repeats)


def measured(compiled: Any, x: jax.Array, weights: Sequence[Any], repeats: int) -> float:
    """`kernel_time` of what is compiled."""
    from jax.experimental.mosaic.gpu import profiler

    _, milliseconds = profiler.measure(compiled, iterations=repeats)(x, list(weights))
    if milliseconds is None:
        raise RuntimeError("CUPTI saw no kernel")
    return statistics.median(milliseconds) * 1e3 / len(weights)


def mixed_types(M: int, K: int, N: int, repeats: int) -> float | None:
    """Microseconds of jax's own kernel for int8 times bfloat16, W^T @ x^T as ours, at its best; None: no tiles fit."""
    from jax.experimental.pallas.ops.gpu import hopper_mixed_type_matmul_mgpu as peer

    weights = [(jax.random.randint(key, (N, K), -128, 128, jnp.int8),) for key in keys(K * N)]
    x = jax.random.normal(jax.random.key(0), (K, M), jnp.bfloat16)
    found = []
    for tile_m, tile_n, tile_k in ((64, 16, 128), (128, 64, 128), (64, 128, 64), (128, 128, 64)):
        if N % (2 * tile_m) or M % tile_n or K % tile_k:
            continue
        config = peer.TuningConfig(
            tile_m, tile_n, tile_k, 4, epi_tile_n=min(tile_n, 64), wg_dimension=peer.MatmulDimension.M
        )
        f = functools.partial(peer.mixed_matmul_kernel, out_dtype=jnp.bfloat16, config=config)
        try:
            found.append(kernel_time(lambda x, w, f=f: f(w, x), x, weights, repeats))
        except (ValueError, NotImplementedError) as problem:
            print(f"    mixed {tile_m} {tile_n} {tile_k}: {str(problem).splitlines()[0][:100]}", flush=True)
    return min(found, default=None)


def torch_products(shapes: Sequence[tuple[int, int, int, int]], repeats: int) -> dict[Any, list[Timed]]:
    """PyTorch's bfloat16 product and its four-bit one, by shape."""
    told = subprocess.run(
        [sys.executable, "-m", "experiments.benchmarks.peer_torch_int4", str(repeats)]
        + [",".join(map(str, shape)) for shape in shapes],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        print(f"    no times of PyTorch: {(told.stderr.strip().splitlines() or ['it failed'])[-1]}", flush=True)
    lines = [json.loads(found) for found in told.stdout.splitlines()]
    return {shape: [Timed(*way) for way in found] for shape, found in zip(shapes, lines, strict=False)}
