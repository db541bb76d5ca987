"""Rounding of a module's input, where it stands beside the matrix: `Quantize` as settings and tensors, and back.

What compressed-tensors computes as we do: symmetric 8 bits, dynamic under float32 scales for each token or group of its
channels, or static under one scale for all; and NVFP4 whose blocks are dynamic under a static scale of the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from qjax.formats import FULL, NVFP4, Format, as_format
from qjax.formats.elements import E4M3
from qjax.formats.integer import Int
from qjax.io.exact import exactly, narrowest, reciprocal
from qjax.operators import Quantize
from qjax.qarray import Grid, Meta, QArray

NAMES = {("int", 8): "int8", ("float", 8): "fp8_e4m3"}
ELEMENTS = {("int", 8): Int(8), ("float", 8): E4M3}
SCALE, DIVISOR = "input_scale", "input_global_scale"
LOCAL = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}


class Inputs(NamedTuple):
    """Dynamic rounding to a format, or rounding under a static scale, of the tensor, that the file has.

    tensor: its name; None if all is dynamic. What the file calls DIVISOR is the scale's reciprocal.
    """

    format: Format
    tensor: str | None = None


def settings(rounding: Quantize) -> dict[str, Any] | None:
    """The `input_activations` that say it; None where none do."""
    fmt = rounding.format
    if rounding.outer is not None:
        plain = rounding.range is None and fmt == NVFP4
        return {**LOCAL, "dynamic": "local", "scale_dtype": "torch.float8_e4m3fn"} if plain else None
    for (kind, bits), name in NAMES.items():
        args = {"num_bits": bits, "type": kind, "symmetric": True}
        if rounding.grid is not None:
            meta, scales = rounding.grid.meta, rounding.grid.scales
            one = len(scales) == 1 and not isinstance(scales[0], QArray) and scales[0].size == 1
            if one and (meta.element, meta.offset) == (ELEMENTS[kind, bits], None):
                return {**args, "strategy": "tensor", "group_size": None, "dynamic": False}
            continue
        size = None if fmt.block == FULL else fmt.block
        if rounding.range is None and fmt == as_format(f"{name}_{f'g{size}' if size else 'token'}_f32"):
            return {**args, "strategy": "group" if size else "token", "group_size": size, "dynamic": True}
    return None


def parse(where: str, args: Mapping[str, Any] | None) -> Inputs | None:
    """What `input_activations` say, or settings of the same words; `where` they stand begins the error.

    Raises:
        ValueError: anything that this module does not know.
    """
    if args is None:
        return None
    name, kind, size = NAMES.get((args.get("type", "int"), args.get("num_bits", 8))), args.get("strategy"), None
    if kind == "group" and isinstance(args.get("group_size"), int) and args["group_size"] > 0:
        size = args["group_size"]
    if args.get("dynamic") == "local" and all(args.get(key) == value for key, value in LOCAL.items()):
        return Inputs(NVFP4, DIVISOR)
    if name is not None and args.get("symmetric", True):
        if args.get("dynamic") is True and (kind == "token" or size is not None):
            return Inputs(as_format(f"{name}_{f'g{size}' if size else 'token'}_f32"))
        if args.get("dynamic") is False and kind == "tensor":
            return Inputs(as_format(f"{name}_tensor_f32"), SCALE)
    raise ValueError(
        f"{where} {dict(args)} cannot be read, only symmetric 8 bits, dynamic by token or group, or "
        "static by tensor, and the local NVFP4"
    )


def write(path: str, rounding: Quantize | None, dtype: str) -> dict[str, np.ndarray]:
    """The tensors beside the matrix: a static scale."""
    if rounding is not None and rounding.outer is not None:
        return {DIVISOR: reciprocal(f"{path} as {DIVISOR}", np.asarray(rounding.outer).reshape(1))}
    if rounding is None or rounding.grid is None:
        return {}
    scale = np.asarray(rounding.grid.scales[0]).reshape(1)
    return {SCALE: exactly(f"{path} as {SCALE}", scale, dtype)}


def read(module: str, inputs: Inputs, tensors: Mapping[str, np.ndarray]) -> Quantize:
    """The rounding that settings and tensors say.

    Raises:
        ValueError: a static scale that is missing, not one, or no positive number.
    """
    if inputs.tensor is None:
        return Quantize.dynamic(inputs.format)
    stored = tensors.get(inputs.tensor)
    if stored is None or stored.size != 1 or not positive(stored):
        raise ValueError(f"{module}: its settings want one positive {inputs.tensor}, the file has {stored}")
    if isinstance(inputs.format.scale, Format):
        scale = stored.astype(np.float32)
        divides = inputs.tensor == DIVISOR
        return Quantize.under(inputs.format, reciprocal(f"{module}.{DIVISOR}", scale) if divides else scale)
    return under(inputs.format, stored.reshape(1, 1))


def positive(scales: np.ndarray) -> bool:
    """Whether they are floats of a file, all finite and above zero."""
    floating = scales.dtype.name in ("float32", "bfloat16", "float16")
    return floating and bool(np.all((scales.astype(np.float32) > 0) & np.isfinite(scales.astype(np.float32))))


def under(format: Format, scale: np.ndarray) -> Quantize:
    """Rounding under static scales [batch..., 1, 1] of a tensor, in the narrowest float that keeps them."""
    scale = narrowest(scale)
    fmt = as_format(format.name.removesuffix("_f32")) if scale.dtype.name == "bfloat16" else format
    return Quantize(fmt, Grid((jnp.asarray(scale),), None, None, Meta(fmt.element, (FULL, FULL))))
