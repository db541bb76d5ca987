"""The public kernels that stand beside each kind of ours: XLA's own way, jax's Pallas kernels, tokamax, tpu-inference.

Products are of x [M, K] and a weight [K, N]. Blocks are those that the package finds for the chip itself, as tokamax
does, or those of its published tables: tpu-inference has some for v6e and 7x, and where it has none for a chip and
shape, v6e's for the shape are taken, or else its default. jax's kernels have no tables; theirs are said here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernels_peers import Built, Peer, tpu_inference
from qjax.formats.elements import NF4

ROUTED = "its loops are as long as the routing makes them, which the estimate does not know"


def xla_dequantized(element: Any, group: int, scale: Any) -> Peer:
    """x @ (codes * scale) as XLA fuses it: multiplied in float32, since the estimate dies over pairs of bfloat16."""

    def build(chip: str, M: int, K: int, N: int) -> Built:
        size = math.gcd(K, group)

        def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
            groups = codes.astype(jnp.float32).reshape(-1, size, N) * scales.astype(jnp.float32)[:, None]
            return jnp.dot(x, groups.reshape(K, N).astype(jnp.bfloat16), preferred_element_type=jnp.float32)

        arguments = [((M, K), jnp.bfloat16), ((K, N), element), ((K // size, N), scale)]
        return Built(product, arguments, 4 * M * N)

    return Peer("XLA dequantize", build)


def xla_groups(element: Any) -> Peer:
    """The sums of every group of 128, from one product with a batch of groups, times its scales, added up."""

    def build(chip: str, M: int, K: int, N: int) -> Built:
        size = math.gcd(K, 128)

        def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
            groups = codes.astype(jnp.bfloat16).reshape(-1, size, N)
            sums = jnp.einsum("mgk,gkn->gmn", x.reshape(M, -1, size), groups, preferred_element_type=jnp.float32)
            return jnp.sum(sums * scales[:, None], axis=0)

        arguments = [((M, K), jnp.bfloat16), ((K, N), element), ((K // size, N), jnp.float32)]
        return Built(product, arguments, 4 * M * N)

    return Peer("XLA groups", build)


def _looked_up(chip: str, M: int, K: int, N: int) -> Built:
    size = math.gcd(K, 64)

    def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
        groups = jnp.asarray(NF4.values(), jnp.float32)[codes].reshape(-1, size, N) * scales[:, None]
        return jnp.dot(x, groups.reshape(K, N).astype(jnp.bfloat16), preferred_element_type=jnp.float32)

    return Built(product, [((M, K), jnp.bfloat16), ((K, N), jnp.uint4), ((K // size, N), jnp.float32)], 4 * M * N)


def _gathered(chip: str, M: int, K: int, N: int) -> Built:
    def product(x: jax.Array, codes: jax.Array, tables: jax.Array) -> jax.Array:
        values = jnp.take_along_axis(tables.astype(jnp.bfloat16), codes.astype(jnp.int32), axis=0)
        return jnp.dot(x, values, preferred_element_type=jnp.float32)

    return Built(product, [((M, K), jnp.bfloat16), ((K, N), jnp.uint4), ((16, N), jnp.float32)], 4 * M * N)


def _integers(dtype: Any) -> Callable[..., Built]:
    def build(chip: str, M: int, K: int, N: int) -> Built:
        def product(x: jax.Array, codes: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
            sums = jnp.dot(x, codes, preferred_element_type=jnp.int32).astype(jnp.float32)
            return sums * rows[:, None] * columns[None]

        return Built(product, _codes(dtype, M, K, N), 4 * M * N)

    return build


def _pallas_integers(dtype: Any) -> Callable[..., Built]:
    def build(chip: str, M: int, K: int, N: int) -> Built:
        matmul = importlib.import_module("jax.experimental.pallas.ops.tpu.matmul").matmul
        shape, depth = (math.gcd(M, 512), math.gcd(N, 1024)), math.gcd(K, 2048)

        def product(x: jax.Array, codes: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
            sums = matmul(x, codes, block_shape=shape, block_k=depth, out_dtype=jnp.int32)
            return sums.astype(jnp.float32) * rows[:, None] * columns[None]

        return Built(product, _codes(dtype, M, K, N), 4 * M * N)

    return build


def _codes(dtype: Any, M: int, K: int, N: int) -> list[tuple[tuple[int, ...], Any]]:
    return [((M, K), dtype), ((K, N), dtype), ((M,), jnp.float32), ((N,), jnp.float32)]


def _rounded_rows(chip: str, M: int, K: int, N: int) -> Built:
    def product(x: jax.Array, codes: jax.Array, columns: jax.Array) -> jax.Array:
        scale = jnp.max(jnp.abs(x), axis=1, keepdims=True).astype(jnp.float32) / 127
        rounded = jnp.round(x.astype(jnp.float32) / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
        return jnp.dot(rounded, codes, preferred_element_type=jnp.int32).astype(jnp.float32) * scale * columns[None]

    return Built(product, _weight(jnp.int8, M, K, N), 4 * M * N)


def _qwix(chip: str, M: int, K: int, N: int) -> Built:
    qwix = importlib.import_module("qwix")

    def product(x: jax.Array, codes: jax.Array, columns: jax.Array) -> jax.Array:
        rows = qwix.quantize(x, jnp.int8, channelwise_axes=(0,))
        weight = qwix.QArray(codes, columns[None], None, jnp.int8)
        return qwix.dot_general(rows, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    return Built(product, _weight(jnp.int8, M, K, N), 4 * M * N)


def _weight(dtype: Any, M: int, K: int, N: int) -> list[tuple[tuple[int, ...], Any]]:
    return [((M, K), jnp.bfloat16), ((K, N), dtype), ((N,), jnp.float32)]


def _tuned(chip: str, M: int, K: int, N: int) -> Any:
    """tpu-inference's blocks for products whose input and weight are int8, of the chip, of v6e, or its default."""
    table = tpu_inference("quantized_matmul.tuned_block_sizes")
    version = {"v4": 4, "v5e": 5, "v5p": 5, "v6e": 6, "7x": 7}[chip]
    keys = [table.TunedKey(v, M, N, K, "int8", "int8") for v in (version, 6)]
    found = [table.TUNED_BLOCK_SIZES[key] for key in keys if key in table.TUNED_BLOCK_SIZES]
    return found[0] if found else table.TunedValue(128, 128, 128)


def _tpu_inference(rounded: bool) -> Callable[..., Built]:
    """Its product of int8 weights [N, K] under a scale an output.

    `rounded`: the input is rounded to int8 in it, and is float32 here, as the estimate dies over pairs of bfloat16.
    """

    def build(chip: str, M: int, K: int, N: int) -> Built:
        kernel, tuned = tpu_inference("quantized_matmul.kernel"), _tuned(chip, M, K, N)

        def product(x: jax.Array, codes: jax.Array, columns: jax.Array) -> jax.Array:
            how = jnp.int8 if rounded else x.dtype
            return kernel.quantized_matmul_kernel(x, codes, columns, x_q_dtype=how, tuned_value=tuned)

        x = jnp.float32 if rounded else jnp.bfloat16
        arguments = [((M, K), x), ((N, K), jnp.int8), ((N,), jnp.float32)]
        return Built(product, arguments, M * N * jnp.dtype(x).itemsize)

    return build


def _tpu_inference_groups(chip: str, M: int, K: int, N: int) -> Built:
    kernel, tuned = tpu_inference("quantized_matmul.blockwise_kernel"), _tuned(chip, M, K, N)

    def product(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
        return kernel.quantized_matmul_kernel(x, codes, scales, block_size=128, tuned_value=tuned)

    arguments = [((M, K), jnp.bfloat16), ((N, K), jnp.int4), ((K // 128, 1, N), jnp.float32)]
    return Built(product, arguments, 2 * M * N)


def tokamax(element: Any, group: int, experts: int = 1) -> Peer:
    """tokamax's product of rows sorted by expert, its newest kernel; one expert is a product with one weight."""

    def build(chip: str, M: int, K: int, N: int) -> Built:
        ragged_dot, QArray = importlib.import_module("tokamax").ragged_dot, importlib.import_module("qwix").QArray
        size = math.gcd(K, group)

        def product(x: jax.Array, codes: jax.Array, scales: jax.Array, sizes: jax.Array) -> jax.Array:
            weight = QArray(codes, scales, None, element)
            return ragged_dot(x, weight, sizes, implementation="mosaic_tpu_v2", preferred_element_type=jnp.float32)

        codes, scales = ((experts, K, N), element), ((experts, K // size, N), jnp.float32)
        return Built(product, [((M, K), jnp.bfloat16), codes, scales, ((experts,), jnp.int32)], 4 * M * N)

    return Peer("tokamax ragged_dot", build, "tokamax", ROUTED)


def _xla_experts(element: Any, experts: int) -> Callable[..., Built]:
    def build(chip: str, M: int, K: int, N: int) -> Built:
        def product(x: jax.Array, codes: jax.Array, scales: jax.Array, sizes: jax.Array) -> jax.Array:
            groups = codes.astype(jnp.float32).reshape(experts, K // 128, 128, N) * scales[:, :, None]
            weight = groups.reshape(experts, K, N).astype(jnp.bfloat16)
            return jax.lax.ragged_dot(x, weight, sizes, preferred_element_type=jnp.float32)

        codes, scales = ((experts, K, N), element), ((experts, K // 128, N), jnp.float32)
        return Built(product, [((M, K), jnp.bfloat16), codes, scales, ((experts,), jnp.int32)], 4 * M * N)

    return build


def _megablox(experts: int) -> Callable[..., Built]:
    def build(chip: str, M: int, K: int, N: int) -> Built:
        gmm = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox").gmm
        tiling = (M, math.gcd(K, 2048), math.gcd(N, 1024))

        def product(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
            return gmm(x, weight, sizes, preferred_element_type=jnp.float32, tiling=tiling)

        weight = ((experts, K, N), jnp.bfloat16)
        return Built(product, [((M, K), jnp.bfloat16), weight, ((experts,), jnp.int32)], 4 * M * N)

    return build


PRODUCTS = {
    "w2a16": (xla_dequantized(jnp.int2, 128, jnp.float32), xla_groups(jnp.int2)),
    "w4a16": (
        xla_dequantized(jnp.int4, 128, jnp.float32),
        xla_groups(jnp.int4),
        tokamax(jnp.int4, 128),
        Peer("tpu-inference blockwise", _tpu_inference_groups, "tpu-inference"),
    ),
    "w8a16": (
        xla_dequantized(jnp.int8, 128, jnp.float32),
        xla_groups(jnp.int8),
        tokamax(jnp.int8, 128),
        Peer("tpu-inference quantized_matmul, a scale an output", _tpu_inference(False), "tpu-inference"),
    ),
    "fp8": (
        xla_dequantized(jnp.float8_e4m3fn, 128, jnp.float32),
        xla_groups(jnp.float8_e4m3fn),
        tokamax(jnp.float8_e4m3fn, 128),
    ),
    "mxfp4": (xla_dequantized(jnp.float4_e2m1fn, 32, jnp.float8_e8m0fnu), tokamax(jnp.float4_e2m1fn, 32)),
    "nvfp4": (xla_dequantized(jnp.float4_e2m1fn, 16, jnp.float8_e4m3fn), tokamax(jnp.float4_e2m1fn, 16)),
    "t4a16": (Peer("XLA lookup", _looked_up),),
    "k4a16": (Peer("XLA lookup", _gathered),),
    "w8a8": (Peer("XLA int8", _integers(jnp.int8)), Peer("jax pallas matmul", _pallas_integers(jnp.int8))),
    "w4a4": (Peer("XLA int4", _integers(jnp.int4)), Peer("jax pallas matmul", _pallas_integers(jnp.int4))),
    "dynamic w8a8": (
        Peer("XLA int8", _rounded_rows),
        Peer("qwix dot_general", _qwix, "qwix"),
        Peer("tpu-inference quantized_matmul", _tpu_inference(True), "tpu-inference"),
    ),
}


def experts(kind: str, number: int) -> tuple[Peer, ...]:
    """Beside the products of rows sorted by one of so many experts: w4a16 or w8a16."""
    element = {"w4a16": jnp.int4, "w8a16": jnp.int8}[kind]
    return (
        Peer("XLA dequantize, ragged_dot", _xla_experts(element, number), None, ROUTED),
        Peer("jax megablox gmm, bfloat16", _megablox(number), None, ROUTED),
        tokamax(element, 128, number),
    )
