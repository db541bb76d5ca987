"""Names of formats: the grammar both ways, descriptions, refusals."""

from __future__ import annotations

import itertools

import pytest

from qjax.formats import E2M1, E4M3, EXAMPLES, FULL, NF4, Format, Int, Table, as_format, describe, parse, spell

GRID = [
    f"int{b}{w}{r}{d}"
    for b, w, r, d in itertools.product(
        (1, 2, 4, 8), ("", "_g32", "_channel", "_tensor"), ("", "_affine", "_narrow", "_signed", "_half"), ("", "_f16")
    )
    if not (b == 1 and r in ("_narrow", "_half"))
]


@pytest.mark.parametrize("name", [*EXAMPLES, *GRID])
def test_spelling_is_canonical_and_parses_back(name):
    fmt = parse(name)
    assert parse(spell(fmt)) == fmt
    assert fmt.name == spell(fmt)
    assert describe(name).startswith(fmt.element.name)
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
    # What no name spells is described in words.
    assert "blocks of 128 x 128" in Format(E4M3, 128, 128, "float32").name


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("int4_64", "int4_g64"),
        ("int4_g0", "block"),
        ("int17", "int1"),
        ("nvpf4", "nvfp4"),
        ("mxfp4_round", "mxfp4"),
        ("fp8_e2m1", "4 bits"),
        ("int4_g64_f64", "int4_g64"),
        ("int1_narrow", "narrow"),
        ("int1_half", "signed"),
        ("", "close names"),
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
    ],
)
def test_impossible_formats_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        Format(**{"element": Int(4), **fields})


def test_not_a_format():
    with pytest.raises(TypeError, match="int"):
        as_format(4)  # type: ignore[arg-type]
    assert Format(Table("t", (-1.0, 1.0)), 8).name
