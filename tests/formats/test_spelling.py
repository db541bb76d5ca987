"""Names of formats: the grammar both ways, descriptions, refusals."""

from __future__ import annotations

import itertools

import pytest

from qjax.formats import (
    E2M1,
    E4M3,
    EXAMPLES,
    FULL,
    NAMED,
    NF4,
    UE5M3,
    Choice,
    Float,
    Format,
    Int,
    Table,
    as_format,
    choice,
    describe,
    parse,
    spell,
)

GRID = [
    f"int{b}{w}{r}{d}"
    for b, w, r, d in itertools.product(
        (1, 2, 4, 8), ("", "_g32", "_channel", "_tensor"), ("", "_affine", "_narrow", "_signed", "_half"), ("", "_f16")
    )
    if not (b == 1 and r in ("_narrow", "_half"))
]


PLACES = ("_g16", "_t32x8", "_tfullx16", "_t16xfull", "_head64", "_input", "_tensor", "_cross0.3")
SCALES = (
    "",
    "_f32",
    "_f16",
    "_e8m0",
    "_e4m3",
    "_e5m2",
    "_ue4m3",
    "_ue5m3",
    "_scale_uint6_g8_f16",
    "_scale_fp8_e4m3_tensor_f32",
)
GRID += [
    f"{base}{where}{scale}"
    for base, where, scale in itertools.product(("int5", "fp4_e2m1", "fp6_e3m2", "nf4", "uint4"), PLACES, SCALES)
    if "cross" not in where or (scale in ("", "_f32", "_e4m3") and base != "nf4")
]
GRID += ["fp4_e2m1_g16_max4_bf16", "int8_max100", "fp4_e2m1_rceil_max7.25_e8m0", "fp8_e4m3b5_none_g32", "bf16_cast"]
GRID += [f"{name}_g8" for name in NAMED] + ["mxfp4_t32x32", "nvfp4_t16x16", "int4_g8|nf4_g8_bf16|mae|tensor"]


def test_spelling_is_canonical_and_parses_back():
    for name in (*EXAMPLES, *GRID):
        fmt = parse(name)
        assert parse(spell(fmt)) == fmt, name
        assert len(fmt.name) <= len(name) and fmt.name == spell(fmt), name
        assert describe(name).startswith(fmt.element.name), name
        assert hash(fmt) == hash(parse(name))


def test_the_named_conventions():
    assert parse("int4_g64") == Format(Int(4), 64, scale="bfloat16", rule="half")
    assert parse("int4_g64_narrow").element == Int(4, narrow=True)
    assert "absmax/7.5" in describe("int4_g64") and "absmax/7 " in describe("int4_g64_narrow")
    assert "signed max/-8" in describe("int4_g64_signed")
    assert parse("int8") == parse("int8_channel") and parse("int8").block == FULL
    assert parse("int8_tensor").tensor and not parse("int8").tensor
    assert "zero point" in describe("int3_g64_affine")
    nv = parse("nvfp4")
    assert isinstance(nv.scale, Format) and nv.scale.element == E4M3 and nv.scale.tensor and nv.block == 16
    assert isinstance(parse("nf4_g64").scale, Format) and parse("nf4_g64_f32").scale == "float32"
    assert [parse(f"mxfp4_{r}").rule for r in ("floor", "rceil", "even", "ceil")] == ["floor", "rceil", "even", "ceil"]
    assert as_format("mxfp8") == parse("mxfp8_e4m3") and as_format(nv) is nv
    assert "blocks of 128 x 128" in describe("fp8_e4m3_t128x128_f32")
    assert Format(E4M3, 128, 128, "float32").name == "fp8_e4m3_t128x128_f32"
    assert parse("int8_token") == parse("int8") and "per head of 64" in describe("int8_head64")
    assert parse("int8_input") == Format(Int(8), 1, FULL, rule="half") and "per input channel" in describe("int8_input")
    assert parse("nvfp4_ue5m3").scale == Format(UE5M3, scale=None)
    assert parse("int4_g64_floatzero").offset == "float_zero" and "real zero point" in describe("int4_g64_floatzero")
    assert parse("mxint4").element == Int(4, narrow=True) and parse("bfp6_g32").block == 32
    # What no name spells is described in words.
    assert "in blocks of 8, scale absmax/1" in Format(Table("t", (-1.0, 1.0)), 8).name


def test_choices():
    fmt = choice(("int4_g64_narrow", "fp4_e2m1_g64"), by="mae", per="tensor")
    assert fmt == parse("int4_g64_narrow|fp4_e2m1_g64|mae|tensor")
    assert fmt.element.elements == (Int(4, narrow=True), E2M1) and fmt.block == 64
    assert isinstance(fmt.rule, Choice) and not fmt.local and parse("bitmod4").local
    six = parse("nvfp4_4over6")
    assert six.element == E2M1 and [c.reach for c in six.candidates] == [None, 4.0]
    assert [c.element.levels()[[0, -1]].tolist() for c in parse("bitmod4").candidates][2:] == [[-6, 8], [-8, 6]]
    assert parse("mofq4_g64") == choice(("int4_g64_narrow", "fp4_e2m1_g64"), per="tensor")
    assert "for each block the one of least squared error" in describe("bitmod4")


@pytest.mark.parametrize(
    ("candidates", "options", "word"),
    [
        (["int4_g64"], {}, "at least two"),
        (["int4_g64", "int4_g32"], {}, "share their block"),
        (["int4_g64", "fp4_e2m1_g64_f32"], {}, "share their scale"),
        (["int4_g64", "int4_g64_affine"], {}, "share their offset"),
        (["int4_g64", "int8_g64"], {}, "one width"),
        (["int4_g64_affine", "int4_g64_affine"], {}, "no offset"),
        (["mofq4", "fp4_e2m1"], {}, "list its candidates"),
        (["int4_g64", "fp4_e2m1_g64"], {"by": "rms"}, "rms"),
        (["int4_g64", "fp4_e2m1_g64"], {"per": "layer"}, "layer"),
    ],
)
def test_impossible_choices_are_refused(candidates, options, word):
    with pytest.raises(ValueError, match=word):
        choice(candidates, **options)


def test_every_format_that_has_a_name_is_an_example():
    assert set(NAMED) <= set(EXAMPLES) and len(set(EXAMPLES)) == len(EXAMPLES)
    for name, fmt in NAMED.items():
        assert parse(name) == fmt and parse(fmt.name) == fmt


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("int4_64", "int4_g64"),
        ("int4_g0", "block"),
        ("int17", "1..16"),
        ("nvpf4", "nvfp4"),
        ("mxfp4_round", "mxfp4"),
        ("fp8_e2m1", "4 bits"),
        ("int4_g64_f64", "int4_g64"),
        ("int1_narrow", "narrow"),
        ("int1_half", "signed"),
        ("", "close names"),
        ("int4_t32", "int8_t32x32"),
        ("mxfp4_f32", "mxfp4"),
        ("nvfp4_g16_affine", "nvfp4"),
        ("int4_cast_f32", "int4"),
        ("int8_cross1.5", "alpha"),
        ("int8_g64_f32_scale_int8", "int8"),
        ("int4_g64|int8_g64", "one width"),
        ("int4_g64|nope", "int4_g64"),
        ("e4m3", "fp8_e4m3"),
    ],
)
def test_unknown_names_are_refused_with_close_ones(name, word):
    with pytest.raises(ValueError, match=word):
        parse(name)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"block": 0}, "block"),
        ({"block": 2.0}, "block"),
        ({"across": -2}, "across"),
        ({"scale": "float64"}, "float64"),
        ({"rule": "best"}, "best"),
        ({"offset": "mean", "rule": "minmax"}, "mean"),
        ({"rule": "half", "element": E2M1}, "half"),
        ({"rule": "half", "element": Int(4, signed=False)}, "half"),
        ({"rule": "minmax"}, "belong together"),
        ({"offset": "zero_point"}, "belong together"),
        ({"offset": "zero_point", "rule": "minmax"}, "unsigned"),
        ({"offset": "zero_point", "rule": "minmax", "element": NF4}, "unsigned"),
        ({"element": Int(1)}, "largest value"),
        ({"scale": parse("int4_g64_affine")}, "scales are quantized"),
        ({"scale": parse("int4_g64_floatzero")}, "scales are quantized"),
        ({"scale": parse("int8_cross0.5")}, "one scale a block"),
        ({"scale": parse("mofq8")}, "one format"),
        ({"scale": parse("uint8"), "rule": "signed"}, "negative scales"),
        ({"reach": 0.0}, "reach"),
        ({"reach": 4.0, "rule": "half"}, "reach"),
        ({"alpha": 0.5, "block": 32}, "alpha"),
        ({"alpha": -0.1}, "alpha"),
        ({"element": Float(3, 2), "offset": "float_zero", "rule": "minmax"}, "unsigned"),
        ({"scale": None, "reach": 3.0}, "nothing to choose"),
    ],
)
def test_impossible_formats_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        Format(**{"element": Int(4), **fields})


def test_not_a_format():
    with pytest.raises(TypeError, match="int"):
        as_format(4)  # type: ignore[arg-type]
    assert Format(Table("t", (-1.0, 1.0)), 8).name
