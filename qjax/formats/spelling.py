"""Formats by name: their grammar both ways, and full descriptions (catalogue A7)."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from typing import cast

from qjax.formats.choosing import choice
from qjax.formats.elements import NF4, UE5M3, Element, element
from qjax.formats.format import FULL, By, Choice, Format, Offset, Per, Rule
from qjax.formats.ggml.types import TYPES
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float
from qjax.formats.named import NAMED

DOUBLE = Format(Int(8, signed=False), 256, scale="float32", rule="minmax", offset="minimum")
"""Scales of scales after QLoRA: 8-bit codes in tiles of 256 with a float32 scale and a float32 minimum."""

_DTYPES: dict[str, str | Format] = {
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "e8m0": "float8_e8m0fnu",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "ue4m3": Format(element("ue4m3"), scale=None),
    "ue5m3": Format(UE5M3, scale=None),
}
_ALIASES = {"mxfp6": "mxfp6_e3m2", "mxfp8": "mxfp8_e4m3"}
_OFFSETS = {"affine": "zero_point", "floatzero": "float_zero", "minimum": "minimum"}
_SIZE, _NUMBER = r"(?:\d+|full)", r"\d+(?:\.\d+)?"
_PARTS = re.compile(
    # The longest name first: fp8_e4m3 is an element, not an fp8 with scales in e4m3.
    r"(?P<base>fp\d+_[us]?e\d+m\d+(?:b-?\d+)?(?:_(?:none|nan|ieee|fnuz))?(?:_(?:zero|nozero))?(?:_flush)?|.+?)"
    rf"(?:_(?P<where>g\d+|t{_SIZE}x{_SIZE}|head\d+|channel|token|input|tensor|cross{_NUMBER}|cast))?"
    r"(?:_(?P<rule>affine|floatzero|minimum|narrow|signed|half|absmax|floor|rceil|even|ceil|fpquant))?"
    rf"(?:_max(?P<reach>{_NUMBER}))?"
    rf"(?:_(?P<dtype>{'|'.join(_DTYPES)}))?"
    r"(?:_scale_(?P<scale>.+))?"
)
_GGML = {name if name not in NAMED else f"ggml_{name}": kind.format for name, kind in TYPES.items()}

EXAMPLES = (
    *("int8", "int4_g64", "int4_g128", "int3_g64_affine", "int4_g64_narrow_f32", "int2_g64_affine", "int8_tensor"),
    *("int8_channel", "int8_token", "int8_input", "int8_head64", "fp8_e4m3_t128x128_f32", "int8_t32x32"),
    *("int8_cross0.15_narrow_f32", "int4_g64_floatzero", "int4_g64_minimum", "int4_g32_narrow_scale_uint6_g8_f16"),
    *("fp8_e4m3", "fp8_e5m2", "fp8_e4m3_tensor", "fp8_e4m3_cast", "fp6_e3m2", "fp4_e2m1_g32", "fp4_e2m1_g16_ue5m3"),
    *("fp4_e2m1_g32_rceil_max7.25_e8m0", "nf4_g64", "nf4_g64_f32", "int4_g64_narrow|fp4_e2m1_g64"),
    *("int6_g64", "int2_narrow_g64", "binary_g64", "q3.5_cast", "bf16_cast", "fp16_cast", "fp8_e3m4", "fp4_e3m0_g64"),
    *("posit8_g64_max4", "posit8es1_g64_max4", "nf3_g64", "af4_g64", "lloyd4_normal_g64", "lloyd4_laplace_g64"),
    *("lloyd4_beta128_g128", "log4_g64", "log4x2_g64", "log4_nozero_g64", "apot4_g64", "sp2_4_g64", "flint4_g64"),
    *("abfloat_e2m1b2_g64", "bnb_fp4_g64", *NAMED, *_GGML),
)


def parse(name: str) -> Format:
    """The format spelled `name`; a ValueError lists close names for one that does not exist.

    A name is `base[_where][_rule][_max{reach}][_dtype][_scale_{format}]`, where the base is

    - an integer `int{b}` or `uint{b}`: per channel, absmax/((2^b-1)/2), bfloat16 scales unless said;
    - a minifloat `fp{b}_e{x}m{y}` or another element, such as `nf4` (whose scales are quantized twice unless a dtype is
      given): per channel, absmax/max, bfloat16 scales unless said;
    - a name of `NAMED`, such as `mxfp4_even`, `nvfp4`, `bitmod4`; only blocks may follow it.

    `where`: `g{n}` along the block axis; `t{m}x{n}` along it by across it (`full` for the whole axis); `channel` or
    `token` the whole axis; `head{n}` the whole axis for n outputs together; `input` one for each entry of the axis;
    `tensor`; `cross{alpha}` CrossQuant's rows and columns; `cast` no scale at all.
    `rule`: `affine` (integer zero point), `floatzero` (real zero point), `minimum`, `narrow`, `signed`, `half`,
    `absmax`, `floor`, `rceil`, `even`, `ceil`, `fpquant`. `dtype`: of the scales, f32, bf16, f16, e8m0, e4m3, e5m2,
    ue4m3, ue5m3; `scale_`: the format that quantizes them. `a|b` is `choice((a, b))`, `a|b|mae|tensor` with options.

    The block types of ggml have their own names, `q4_0`, `q4_k`, `iq4_nl`, ..., with `ggml_` in front where that is a
    name of `NAMED`: `ggml_mxfp4`.

    >>> parse("int4_g64").rule, parse("int4_g64").block, parse("mxfp4").scale
    ('half', 64, 'float8_e8m0fnu')
    """
    try:
        found = _parse(name)
    except ValueError as error:  # its parts do not exist, or do not go together
        raise ValueError(f"format {name!r}: {error}") from error
    if found is None:
        close = difflib.get_close_matches(name, EXAMPLES, n=5, cutoff=0.4)
        raise ValueError(f"unknown format {name!r}; close names: {', '.join(close or EXAMPLES)}")
    return found


@functools.cache
def _parse(name: str) -> Format | None:
    if "|" in name:
        return _parse_choice(name)
    if name in NAMED or name in _ALIASES:
        return NAMED[_ALIASES.get(name, name)]
    if name in _GGML:
        return _GGML[name]
    if name.startswith("ggml_") and name.removeprefix("ggml_") in TYPES:
        return TYPES[name.removeprefix("ggml_")].format
    match = _PARTS.fullmatch(name)
    if match is None:
        return None
    base, where, rule, reach, dtype, scale = match.groups()
    if named := NAMED.get(_ALIASES.get(base, base)):
        return named.blocked(*_blocks(where)) if where and not (rule or reach or dtype or scale) else None
    chosen = _element(base, rule)
    if chosen is None or (dtype and scale) or (where == "cast" and (rule or reach or dtype or scale)):
        return None
    if where == "cast":
        return Format(chosen, scale=None)
    inner = _parse(scale) if scale else _DTYPES[dtype] if dtype else DOUBLE if chosen == NF4 else "bfloat16"
    if inner is None:
        return None
    offset = _OFFSETS.get(rule or "")
    alpha = float(where.removeprefix("cross")) if where and where.startswith("cross") else None
    return Format(
        chosen,
        *_blocks(where),
        scale=inner,
        rule=cast(
            Rule, "minmax" if offset else rule if rule not in (None, "narrow") else _usual_rule(chosen, reach, alpha)
        ),
        offset=cast(Offset | None, offset),
        reach=float(reach) if reach else None,
        alpha=alpha,
    )


def _usual_rule(e: Element, reach: str | None, alpha: float | None) -> Rule:
    if e == Int(1):  # one signed bit holds only 0 and -1, which serves a signed scale alone
        return "signed"
    full_range = isinstance(e, Int) and e.signed and not e.narrow
    return "half" if full_range and reach is None and alpha is None else "absmax"


def _parse_choice(name: str) -> Format | None:
    words = name.split("|")
    by, per = "mse", "block"
    if words[-1] == "tensor":
        per = words.pop()
    if words[-1] in ("mae", "max"):
        by = words.pop()
    found = [_parse(word) for word in words]
    if any(fmt is None for fmt in found):
        return None
    return choice(cast(list[Format], found), cast(By, by), cast(Per, per))


def _element(base: str, rule: str | None) -> Element | None:
    if match := re.fullmatch(r"fp(\d+)_(.+)", base):
        chosen = element(match[2])
        if chosen.bits != int(match[1]):
            raise ValueError(f"{chosen.name} has {chosen.bits} bits, not {match[1]}")
        return chosen
    if match := re.fullmatch(r"(u?)int(\d+)", base):
        return Int(int(match[2]), narrow=rule == "narrow", signed=not match[1] and rule not in _OFFSETS)
    try:
        chosen = element(base)
    except ValueError:
        return None
    # The format of a minifloat is called fp{bits}_{element}: the bare name is that of a scale type.
    return None if rule == "narrow" or (isinstance(chosen, Float) and _base(chosen) != base) else chosen


def _base(e: Element) -> str:
    """What an element is called at the start of a format's name."""
    if isinstance(e, Float) and re.match(r"[us]?e\d", e.name):
        return f"fp{e.bits}_{e.name}"
    return e.name.removesuffix("_narrow")


def _blocks(where: str | None) -> tuple[int, int]:
    def size(text: str) -> int:
        return FULL if text == "full" else int(text)

    if where is None or where in ("channel", "token") or where.startswith("cross"):
        return FULL, 1
    if where == "tensor":
        return FULL, FULL
    if where == "input":
        return 1, FULL
    if where.startswith("head"):
        return FULL, int(where[4:])
    if where.startswith("t"):
        block, across = where[1:].split("x")
        return size(block), size(across)
    return int(where[1:]), 1


def _where(fmt: Format) -> str:
    """The word for the blocks of a format, underscore included; nothing for the usual one."""
    if fmt.alpha is not None:
        return f"_cross{fmt.alpha:g}"
    block, across = fmt.block, fmt.across
    if (block, across) == (1, FULL):
        return "_input"
    if block == FULL:
        return {1: "", FULL: "_tensor"}.get(across, f"_head{across}")
    return f"_g{block}" if across == 1 else f"_t{block}x{'full' if across == FULL else across}"


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
    return min((name for name in _spellings(fmt) if _parse_or_none(name) == fmt), key=len, default=describe(fmt))


def _spellings(fmt: Format) -> Iterator[str]:
    """Candidates for the name of `fmt`."""
    yield from (name for name, named in _GGML.items() if named == fmt)
    where, usual = _where(fmt), {name: named for name, named in NAMED.items() if named.element == fmt.element}
    yield from (name for name, named in usual.items() if named == fmt)
    yield from (name + where for name, named in usual.items() if named.blocked(fmt.block, fmt.across) == fmt)
    if isinstance(fmt.rule, Choice):
        options = [word for word, plain in ((fmt.rule.by, "mse"), (fmt.rule.per, "block")) if word != plain]
        yield "|".join([*(spell(c) for c in fmt.rule.candidates), *options])
        return
    e = fmt.element
    base = _base(e).removeprefix("u") if fmt.offset and isinstance(e, Int) else _base(e)
    if fmt.scale is None:
        yield f"{base}_cast"
        return
    rules = {v: k for k, v in _OFFSETS.items()}
    words = ("", f"_{rules[fmt.offset]}") if fmt.offset else ("", "_narrow", f"_{fmt.rule}")
    reach = "" if fmt.reach is None else f"_max{fmt.reach:g}"
    dtype = {v: f"_{k}" for k, v in _DTYPES.items()}.get(fmt.scale)
    scales = ("", dtype) if dtype else ("",)
    yield from (base + where + word + reach + scale for word in words for scale in scales)
    if isinstance(fmt.scale, Format):
        yield from (f"{base}{where}{word}{reach}_scale_{spell(fmt.scale)}" for word in words)


def _parse_or_none(name: str) -> Format | None:
    try:
        return _parse(name)
    except ValueError:  # words that do not go together, or an element whose name is no spelling
        return None


def describe(fmt: Format | str) -> str:
    """The format in words: element, blocks, scale rule, scale storage and offset kind.

    >>> describe("int4_g64")
    'int4 in blocks of 64, scale absmax/7.5 stored as bfloat16, no offset'
    """
    fmt = as_format(fmt)
    if fmt.scale is None and fmt.levels is None:
        return f"{fmt.element.name} without a scale, a cast"
    if fmt.scale is None:
        return f"{fmt.element.name} {_blocks_in_words(fmt)}, no scale, levels of its own"
    if isinstance(fmt.rule, Choice):
        error = {"mse": "squared error", "mae": "absolute error", "max": "largest error"}[fmt.rule.by]
        chosen = f"for each {fmt.rule.per} the one of least {error}"
        rest = {_beside_the_element(c) for c in fmt.rule.candidates}
        if len(rest) == 1 and len({c.element for c in fmt.rule.candidates}) == len(fmt.rule.candidates):
            return f"{fmt.element.name}{rest.pop()}, {chosen}"
        options = " or ".join(f"[{describe(c)}]" for c in fmt.rule.candidates)
        return f"{fmt.element.name}, {chosen}: {options}"
    if fmt.alpha is not None:
        top = fmt.reach or fmt.element.max
        rule = f"(row absmax)^{fmt.alpha:g} (column absmax)^{1 - fmt.alpha:g}/{top:g}"
        return f"{fmt.element.name} per row and column, scale {rule} stored as two factors in {fmt.scale}, no offset"
    scale = f"stored as {fmt.scale}" if isinstance(fmt.scale, str) else f"quantized to [{describe(fmt.scale)}]"
    offset = {
        None: "no offset",
        "zero_point": "integer zero point, range includes 0",
        "float_zero": "real zero point",
        "minimum": "minimum added",
    }[fmt.offset]
    return f"{fmt.element.name} {_blocks_in_words(fmt)}, scale {_rule_in_words(fmt)} {scale}, {offset}"


def _beside_the_element(fmt: Format) -> str:
    """The description behind the element's name, the element's own largest value (or the reach) in words."""
    words = describe(fmt).removeprefix(fmt.element.name)
    return words.replace(f" absmax/{fmt.reach or fmt.element.max:g} ", " absmax/largest value ", 1)


def _blocks_in_words(fmt: Format) -> str:
    block, across = fmt.block, fmt.across
    if block == FULL:
        return {1: "per channel", FULL: "per tensor"}.get(across, f"per head of {across} channels")
    if (block, across) == (1, FULL):
        return "per input channel"
    return f"in blocks of {block}" + ("" if across == 1 else f" x {'whole axes' if across == FULL else across}")


def _rule_in_words(fmt: Format) -> str:
    e = fmt.element
    top = f"{fmt.reach or e.max:g}"
    return {
        "absmax": f"absmax/{top}",
        "half": f"absmax/{(2**e.bits - 1) / 2:g}",
        "signed": f"signed max/{e.min:g}",
        "minmax": f"(max-min)/{e.max - e.min:g}",
        "floor": f"2^(floor(log2 absmax)-{e.top_exponent}), OCP floor,",
        "rceil": f"2^ceil(log2(absmax/{top})), rceil,",
        "even": f"2^(floor(log2 of absmax rounded to {e.name})-{e.top_exponent}), even,",
        "ceil": f"2^(ceil(log2 absmax)-{e.top_exponent}), ceil,",
        "ggml": "as ggml's encoder chooses it,",
        "fpquant": f"4/3 2^(floor(log2 absmax)-{e.top_exponent}), FP-Quant,",
    }[cast(str, fmt.rule)]
