"""Kernels through the real compilers, where their wheels are: they fit, do not spill, and beat a floor or a count."""

from __future__ import annotations

import pytest

from qjax.kernels.aot import gpu, sass, tpu
from qjax.kernels.aot.chips import CHIPS, roofline
from tests.kernels.aot_records import benchmark


def test_rooflines_are_the_arithmetic_of_the_chip():
    found = roofline(CHIPS["v6e"], 2 * 512 * 4096 * 4096, 4096 * 4096)
    assert found.compute == pytest.approx(2 * 512 * 4096 * 4096 / 920e12 * 1.75e9)
    assert found.memory == pytest.approx(4096 * 4096 / 1.64e12 * 1.75e9)
    assert found.cycles == found.compute


@pytest.mark.skipif(tpu.missing() is None, reason="libtpu is here")
def test_without_libtpu_it_says_so():
    with pytest.raises(RuntimeError, match="no libtpu"):
        tpu.estimate(CHIPS["v5e"], abs)


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
def test_decode_kernels_compile_and_beat_the_bfloat16_floor():
    records = benchmark("--tokens 16 --chips v5e v6e 7x --kernels", "w4a16 sums", "mxfp4 sums", "t4a16 sums")
    found = {(r["chip"], r["kernel"]): r for r in records}
    assert len(found) == 9 and [key for key, r in found.items() if r["problem"] is not None] == []
    for (chip, _), record in found.items():
        assert record["cycles"] < roofline(CHIPS[chip], 2 * 16 * 4096 * 4096, 2 * 4096 * 4096).cycles
    for chip, share in (("v5e", 0.85), ("v6e", 0.8), ("7x", 0.65)):
        assert found[chip, "w4a16 sums"]["share"] > share


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
def test_attention_over_bytes_is_read_at_the_bandwidth():
    (record,) = benchmark("--chips v6e --attention", "int8")
    assert record["problem"] is None
    assert record["share"] > 0.9 and record["speed_of_bf16_floor"] > 1.8


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
def test_a_rotation_in_front_hides_behind_the_weight():
    (record,) = benchmark("--tokens 16 --chips v6e --kernels", "hadamard w8a8")
    assert record["problem"] is None and record["share"] > 0.85


@pytest.mark.skipif(gpu.missing() is None, reason="the packages are here")
def test_without_the_packages_it_says_which():
    with pytest.raises(RuntimeError, match=r"no .*nvidia.*: install qjax\[kernels\]"):
        gpu.compiled(gpu.GPUS["H100"], abs)


@pytest.mark.skipif(gpu.missing() is not None, reason=str(gpu.missing()))
def test_hopper_kernels_stay_in_registers_and_near_half_of_a_plain_conversion():
    """955 for 128 x 128 weights and 64 rows: a kernel of the plain kind, nibbles converted and scaled one by one."""
    for record in benchmark("--tokens 64 512 --chips H100"):
        assert record["problem"] is None and record["spills"] == 0 and record["registers"] <= 255
        kind, most = {"w4a16": ("HGMMA", 0.5), "w8a8": ("IGMMA", 0.25), "fp8": ("QGMMA", 0.25)}.get(
            record["kernel"], ("HGMMA", 0.65)
        )
        assert record["opcode"].startswith(kind + ".64x")
        assert record["tile"] <= 955 * most * max(1, record["rows"] / 64)


@pytest.mark.skipif(gpu.missing() is not None, reason=str(gpu.missing()))
def test_blackwell_multiplies_codes_with_their_scales():
    """UTCOMMA takes four-bit floats, UTCQMMA eight-bit ones; 4X: four scales of 16 codes in one product."""
    found = {record["kernel"]: record for record in benchmark("--tokens 16 --chips B200")}
    assert {kernel: r["opcode"] for kernel, r in found.items()} == {
        "nvfp4": "UTCOMMA.4X",
        "mxfp4": "UTCOMMA",
        "mxfp8": "UTCQMMA",
    }
    for record in found.values():
        assert record["problem"] is None and record["spills"] == 0 and record["products"] == 4


LISTING = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ;
   -:-:-:Y:05        /*0020*/              @!P0 BRA `(.L_x_0)
        /*0030*/                   NOP ;
.L_x_1:
        /*0040*/                   LOP3.LUT R4, R5, 0xf000f, RZ, 0xc0, !PT ;
        /*0050*/                   HGMMA.64x64x16.F32.BF16 R24, R88, gdesc[UR8], R24, gsb0 ;
        /*0060*/               @P0 BRA `(.L_x_3) ;
        /*0070*/                   STL [R1], R4 ;
.L_x_2:
        /*0080*/                   BRA.U !UP0, `(.L_x_1) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   FFMA R4, R4, R5, R6 ;
        /*00b0*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4) ;
"""


def test_main_loop_is_what_multiplies_with_its_parts_out_of_line():
    code, labels = sass.parse(LISTING)
    loop = sass.main_loop(code, labels)
    assert sorted(op.split(".")[0] for op in loop) == ["BRA", "BRA", "BRA", "FFMA", "HGMMA", "LOP3", "STL"]
    assert sass.products(loop) == ["HGMMA.64x64x16.F32.BF16"] and sass.spills(code) == 1
    straight, nowhere = sass.parse(LISTING[: LISTING.index(".L_x_0")])
    assert sass.main_loop(straight, nowhere) == [] and len(straight) == 1
