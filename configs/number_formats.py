"""Round to nearest on SmolLM2-135M in one format of each kind.

Integers with a zero point and without, per tensor, per channel, per group and in tiles (catalogue A1-A3, C1, C2, C6,
C7); minifloats of 4 to 8 bits (catalogue A10-A13); blocks under powers of two and under small floats (catalogue
A19-A24); tables and scales of scales (catalogue A25, A26, C8); and formats chosen by error for a block or a tensor
(catalogue A14, A15, A27-A29).

Papers: OCP Microscaling Formats v1.0 (2023); BitMoD (arXiv:2411.11745), ANT (arXiv:2208.14286), MoFQ
(arXiv:2305.12356), FP8 quantization (arXiv:2208.09225), block-based quantisation (arXiv:2310.05079), four over six
(arXiv:2512.02010), QLoRA (arXiv:2305.14314).

Expected: eight bits are near float in every format with a scale a channel; a choice is no worse than its candidates in
the error of weights; at four bits smaller blocks and finer scales win. Recorded in
experiments/results/number_formats.json; four over six is the best at four bits, and ANT and MoFQ choose the same.

Cost: 12 minutes and 3 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/number_formats.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("number_formats")
    formats = (
        *("int8_tensor", "int8", "fp8_e4m3", "fp8_e5m2", "fp8_e4m3_t128x128_f32", "fp8_any", "flex8", "mxint8"),
        *("mxfp6_e3m2", "bfp6", "bm6", "bl6", "fp5_e2m2_g32", "int5_g64"),
        *("int4_g64_narrow", "int4_g64_affine", "fp4_e2m1_g32", "fp4_e3m0_g32", "mxint4", "nvint4", "nvfp4_ue5m3"),
        *("nvfp4_4over6", "nf4_g64", "bitmod4", "ant4_g64", "mofq4_g64"),
    )
    config.recipe = {"methods": ("rtn",), "format": formats}
    config.evaluation = {"windows": 8, "length": 256, "batch": 4, "part": "report"}
    return config
