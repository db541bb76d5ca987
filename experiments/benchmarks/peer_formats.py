"""The torch and numpy libraries' side of `formats`: quantizers called one at a time on request. Needs no qjax.

python peer_formats.py WEIGHT.npy [--compile]        (called by the benchmark)

Prints the libraries' versions and the list of cases [format, library], one JSON line each; then answers each line "case
number, way" on its input with the seconds of one call. Blocks lie along the last axis of the weight [out, in].
`--compile` adds torchao's functions under `torch.compile`, which needs a C++ compiler.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import MappingType, to_nf4
from torchao.quantization import quant_primitives as ao

torch.set_grad_enabled(False)

Ways = tuple[Callable[..., Any], Callable[..., Any]]
"""Quantize: w -> parts; dequantize: parts -> w."""


def torchao_int(bits: int, block: int, affine: bool) -> Ways:
    """Codes in a byte, scales, zero points; block 0 is a channel."""
    low, high = (0, 2**bits - 1) if affine else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    dtype = torch.uint8 if affine else torch.int8
    kind = MappingType.ASYMMETRIC if affine else MappingType.SYMMETRIC

    def forward(w: torch.Tensor) -> Any:
        size = (1, block or w.shape[1])
        scale, zero = ao.choose_qparams_affine(w, kind, size, dtype, low, high, zero_point_dtype=torch.int32)
        return ao.quantize_affine(w, size, scale, zero, dtype, low, high), scale, zero

    def back(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return ao.dequantize_affine(codes, (1, block or codes.shape[1]), scale, zero, dtype, low, high)

    return forward, back


def torchao_fp8(dtype: torch.dtype) -> Ways:
    """Per channel."""

    def forward(w: torch.Tensor) -> Any:
        scale = ao._choose_scale_float8(w, [1, w.shape[1]], dtype)
        return ao._quantize_affine_float8(w, scale, dtype), scale

    return forward, ao._dequantize_affine_float8


def torchao_mx(dtype: torch.dtype | str) -> Ways:
    """The OCP rule."""

    def forward(w: torch.Tensor) -> Any:
        scale, data = to_mx(w, dtype, 32, ScaleCalculationMode.FLOOR)
        return data, scale

    return forward, lambda data, scale: to_dtype(data, scale, dtype, 32, torch.float32)


def torchao_nvfp4() -> Ways:
    """With the scale of the tensor."""

    def forward(w: torch.Tensor) -> Any:
        return (NVFP4Tensor.to_nvfp4(w, per_tensor_scale=per_tensor_amax_to_scale(w.abs().amax())),)

    return forward, lambda q: q.dequantize(torch.float32)


def compressed_int(bits: int, group: int, symmetric: bool) -> Ways:
    """compressed-tensors; the ranges its observer would take are taken here."""
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    return compressed(args, group)


def compressed(args: QuantizationArgs, group: int) -> Ways:
    """Codes in a byte; group 0 is a channel."""
    dtype = torch.int8 if args.type == "int" else torch.float8_e4m3fn

    def forward(w: torch.Tensor) -> Any:
        blocks = w.unflatten(-1, (-1, group)) if group else w
        scale, zero = calculate_qparams(blocks.amin(-1, keepdim=not group), blocks.amax(-1, keepdim=not group), args)
        return quantize(w, scale, zero, args, dtype=dtype), scale, zero

    return forward, lambda codes, scale, zero: dequantize(codes, scale, zero, args, dtype=torch.float32)


def ggml(name: str) -> Ways:
    """llama.cpp's own in numpy, from and to the bytes of the file."""
    kind = getattr(gguf.GGMLQuantizationType, name)
    return lambda w: (gguf.quants.quantize(w.numpy(), kind),), lambda data: gguf.quants.dequantize(data, kind)


def cases() -> Iterator[tuple[str, str, Callable[..., Any], Callable[..., Any], bool]]:
    """(format of qjax, library, its two ways, whether torch.compile can take them on CPU)."""
    yield "int8", "torchao", *torchao_int(8, 0, False), True
    yield "int8", "compressed-tensors", *compressed_int(8, 0, True), False
    for group in (64, 128):
        yield f"int4_g{group}", "torchao", *torchao_int(4, group, False), True
        yield f"int4_g{group}", "compressed-tensors", *compressed_int(4, group, True), False
        yield f"int4_g{group}_affine", "torchao", *torchao_int(4, group, True), True
        yield f"int4_g{group}_affine", "compressed-tensors", *compressed_int(4, group, False), False
    yield "fp8_e4m3", "torchao", *torchao_fp8(torch.float8_e4m3fn), True
    fp8 = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="channel")
    yield "fp8_e4m3", "compressed-tensors", *compressed(fp8, 0), False
    yield "fp8_e5m2", "torchao", *torchao_fp8(torch.float8_e5m2), True
    mx = {"mxfp4": torch.float4_e2m1fn_x2, "mxfp6_e2m3": "fp6_e2m3", "mxfp6_e3m2": "fp6_e3m2",
          "mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2}  # fmt: skip
    for name, dtype in mx.items():
        yield name, "torchao", *torchao_mx(dtype), False
    yield "mxfp4", "gguf", *ggml("MXFP4"), False
    yield "nvfp4", "torchao", *torchao_nvfp4(), False
    yield "nf4_g64", "torchao", lambda w: (to_nf4(w, 64, 256),), lambda q: q.get_original_weight(), False
    try:
        import bitsandbytes.functional as bnb
    except ImportError:
        return
    nf4 = functools.partial(bnb.quantize_4bit, blocksize=64, quant_type="nf4", compress_statistics=True)
    yield "nf4_g64", "bitsandbytes", nf4, bnb.dequantize_4bit, False
    plain = functools.partial(bnb.quantize_4bit, blocksize=64, quant_type="nf4")
    yield "nf4_g64_f32", "bitsandbytes", plain, bnb.dequantize_4bit, False
    yield "int8", "bitsandbytes", lambda w: bnb.int8_vectorwise_quant(w)[:2], bnb.int8_vectorwise_dequant, False


def main() -> None:
    """List the cases, then time one call for each line that comes in."""
    w = torch.from_numpy(np.load(sys.argv[1]))
    table = list(cases())
    if "--compile" in sys.argv:
        compiled = functools.partial(torch.compile, dynamic=False)
        table += [(f, f"{name} compiled", compiled(a), compiled(b), False) for f, name, a, b, may in table if may]
    versions = {}
    for name in ("torch", "torchao", "compressed-tensors", "gguf", "bitsandbytes"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    print(json.dumps(versions), flush=True)
    print(json.dumps([case[:2] for case in table]), flush=True)
    parts = {}
    for line in sys.stdin:
        number, way = line.split()
        _, _, forward, back, _ = table[int(number)]
        if way == "dequantize" and number not in parts:
            parts = {number: forward(w)}  # of the latest case alone: a format's parts are as large as the weight
        start = time.perf_counter()
        forward(w) if way == "quantize" else back(*parts[number])
        print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
