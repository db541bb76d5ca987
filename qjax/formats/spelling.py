"""Formats by name: their grammar, full descriptions, and the presets (MX formats and NVFP4: catalogue A19, A20)."""

from __future__ import annotations

import difflib
import functools
import re
from typing import cast

from qjax.formats.elements import E2M1, E2M3, E3M2, E4M3, E5M2, NF4, Element, element
from qjax.formats.format import FULL, POWER_OF_TWO_RULES, Format, Rule
from qjax.formats.ggml.types import TYPES
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float

_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_MX = {
    "mxfp4": E2M1,
    "mxfp6_e3m2": E3M2,
    "mxfp6_e2m3": E2M3,
    "mxfp8_e4m3": E4M3,
    "mxfp8_e5m2": E5M2,
    "mxint8": Int(8, narrow=True),
}
NVFP4 = Format(E2M1, 16, scale=Format(E4M3, FULL, FULL, scale="float32"))
DOUBLE = Format(Int(8, signed=False), 256, scale="float32", rule="minmax", offset="minimum")
"""Scales of scales after QLoRA: 8-bit codes in tiles of 256 with a float32 scale and a float32 minimum."""

_INT = re.compile(
    r"int([1-9]|1[0-6])(_(?P<where>g\d+|channel|tensor))?(_(?P<rule>affine|narrow|signed|half))?(_(?P<dtype>\w+))?"
)
_FP = re.compile(r"fp([4-8])_(?P<element>u?e\d+m\d+)(_(?P<where>g\d+|channel|tensor))?(_(?P<dtype>f32|bf16|f16))?")
_MXNAME = re.compile(r"(?P<base>mxfp4|mxfp6_e3m2|mxfp6_e2m3|mxfp8_e4m3|mxfp8_e5m2|mxfp6|mxfp8|mxint8)(_(?P<rule>\w+))?")
_GGML = {name if name not in ("mxfp4", "nvfp4") else f"ggml_{name}": kind.format for name, kind in TYPES.items()}
_NF = re.compile(r"nf4(_(?P<where>g\d+|channel|tensor))?(_(?P<dtype>f32|bf16|f16))?")

EXAMPLES = (
    *("int8", "int4_g64", "int4_g128", "int3_g64_affine", "int4_g64_narrow_f32", "int2_g64_affine", "int8_tensor"),
    *("int8_channel", "fp8_e4m3", "fp8_e5m2", "fp8_e4m3_tensor", "fp6_e3m2", "fp4_e2m1_g32", "nvfp4", "nf4_g64"),
    *("nf4_g64_f32", *_MX, *(f"mxfp4_{rule}" for rule in POWER_OF_TWO_RULES)),
)


def parse(name: str) -> Format:
    """The format spelled `name`; a ValueError lists close names for one that does not exist.

    `int{b}[_g{n}|_channel|_tensor][_affine|_narrow|_signed|_half][_f32|_bf16|_f16]` (per channel, rule half, bfloat16
    scales unless said), `fp8_e4m3[_g{n}|_channel|_tensor][_dtype]` for any minifloat, `mxfp4`, `mxfp6_e3m2`,
    `mxfp6_e2m3`, `mxfp8_e4m3`, `mxfp8_e5m2`, `mxint8` with `[_floor|_rceil|_even|_ceil]`, `nvfp4`,
    `nf4[_g{n}|..]` (double quantized scales) and `nf4_g64_f32` (plain scales); the block types of ggml by their names,
    `q4_0`, `q4_k`, `iq4_nl`, ..., with `ggml_` in front where this project has another of that name: `ggml_mxfp4`.

    >>> parse("int4_g64").rule, parse("int4_g64").block, parse("mxfp4").scale
    ('half', 64, 'float8_e8m0fnu')
    """
    found = _parse(name)
    if found is None:
        close = difflib.get_close_matches(name, [*EXAMPLES, *_GGML], n=5, cutoff=0.4)
        raise ValueError(f"unknown format {name!r}; close names: {', '.join(close or EXAMPLES)}")
    return found


@functools.cache
def _parse(name: str) -> Format | None:
    if name == "nvfp4":
        return NVFP4
    if name in _GGML:
        return _GGML[name]
    if name.startswith("ggml_") and name.removeprefix("ggml_") in TYPES:
        return TYPES[name.removeprefix("ggml_")].format
    if (match := _INT.fullmatch(name)) and match["dtype"] in (None, *_DTYPES):
        bits, rule, dtype = int(match[1]), match["rule"], _DTYPES[match["dtype"] or "bf16"]
        block, across = _blocks(match["where"])
        if rule == "affine":
            return Format(Int(bits, signed=False), block, across, dtype, "minmax", "zero_point")
        if rule == "narrow":
            return Format(Int(bits, narrow=True), block, across, dtype, "absmax")
        # One signed bit holds only 0 and -1, which serves a signed scale alone.
        usual = "half" if bits > 1 else "signed"
        return Format(Int(bits), block, across, dtype, cast(Rule, rule or usual))
    if match := _FP.fullmatch(name):
        chosen = element(match["element"])
        if chosen.bits != int(match[1]):
            raise ValueError(f"format {name!r}: {chosen.name} has {chosen.bits} bits, not {match[1]}")
        return Format(chosen, *_blocks(match["where"]), _DTYPES[match["dtype"] or "bf16"])
    if (match := _MXNAME.fullmatch(name)) and match["rule"] in (None, *POWER_OF_TWO_RULES):
        base = {"mxfp6": "mxfp6_e3m2", "mxfp8": "mxfp8_e4m3"}.get(match["base"], match["base"])
        rule = cast(Rule, match["rule"] or "floor")
        return Format(_MX[base], 32, scale="float8_e8m0fnu", rule=rule)
    if match := _NF.fullmatch(name):
        dtype = match["dtype"]
        return Format(NF4, *_blocks(match["where"]), _DTYPES[dtype] if dtype else DOUBLE)
    return None


def _blocks(where: str | None) -> tuple[int, int]:
    if where is None or where == "channel":
        return FULL, 1
    return (FULL, FULL) if where == "tensor" else (int(where[1:]), 1)


def as_format(fmt: Format | str) -> Format:
    """`fmt` itself, or the format it spells."""
    if isinstance(fmt, Format):
        return fmt
    if isinstance(fmt, str):
        return parse(fmt)
    raise TypeError(f"a format is a Format or its name, got {type(fmt).__name__}")


@functools.cache
def spell(fmt: Format) -> str:
    """The shortest name that `parse` turns into `fmt`; its description in words where no name does.

    >>> spell(parse("int4_g64_half_bf16")), spell(parse("mxfp8"))
    ('int4_g64', 'mxfp8_e4m3')
    """
    where = {(FULL, 1): "", (FULL, FULL): "_tensor"}.get((fmt.block, fmt.across), f"_g{fmt.block}")
    dtype = {v: f"_{k}" for k, v in _DTYPES.items()}.get(fmt.scale if isinstance(fmt.scale, str) else "", "")
    e = fmt.element
    names = [
        *_GGML,
        "nvfp4",
        f"nf4{where}",
        f"nf4{where}{dtype}",
        *_MX,
        *(f"{m}_{r}" for m in _MX for r in POWER_OF_TWO_RULES),
    ]
    if isinstance(e, Int):
        base = f"int{e.bits}{where}"
        names += [base + rule + d for rule in ("", "_affine", "_narrow", "_signed") for d in ("", dtype)]
    if isinstance(e, Float):
        names += [f"fp{e.bits}_{e.name}{where}{d}" for d in ("", dtype)]
    for name in names:
        if _parse_or_none(name) == fmt:
            return name
    return describe(fmt)


def _parse_or_none(name: str) -> Format | None:
    try:
        return _parse(name)
    except ValueError:  # an element whose name is no minifloat spelling
        return None


def describe(fmt: Format | str) -> str:
    """The format in words: element, blocks, scale rule, scale storage and offset kind.

    >>> describe("int4_g64")
    'int4 in blocks of 64, scale absmax/7.5 stored as bfloat16, no offset'
    """
    fmt = as_format(fmt)
    if fmt.scale is None:
        return f"{fmt.element.name} without a scale, a cast"
    where = {
        (FULL, 1): "per channel",
        (FULL, FULL): "per tensor",
    }.get((fmt.block, fmt.across))
    if where is None:
        block = "whole axes" if fmt.block == FULL else fmt.block
        across = "" if fmt.across == 1 else f" x {'whole axes' if fmt.across == FULL else fmt.across}"
        where = f"in blocks of {block}{across}"
    scale = f"stored as {fmt.scale}" if isinstance(fmt.scale, str) else f"quantized to [{describe(fmt.scale)}]"
    offset = {
        None: "no offset",
        "zero_point": "integer zero point, range includes 0",
        "minimum": "minimum added",
    }[fmt.offset]
    return f"{fmt.element.name} {where}, scale {_rule(fmt.element, fmt.rule)} {scale}, {offset}"


def _rule(e: Element, rule: str) -> str:
    top = f"{e.max:g}"
    return {
        "absmax": f"absmax/{top}",
        "half": f"absmax/{(2**e.bits - 1) / 2:g}",
        "signed": f"signed max/{e.min:g}",
        "minmax": f"(max-min)/{e.max - e.min:g}",
        "floor": f"2^(floor(log2 absmax)-{e.top_exponent}), OCP floor,",
        "rceil": f"2^ceil(log2(absmax/{top})), rceil,",
        "even": f"2^(floor(log2 of absmax rounded to {e.name})-{e.top_exponent}), even,",
        "ceil": f"2^(ceil(log2 absmax)-{e.top_exponent}), ceil,",
        "ggml": "as ggml's encoder chooses it",
    }[rule]
