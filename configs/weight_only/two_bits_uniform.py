"""What makes a uniform two-bit grid usable: moving zeros without data, then scales and codes in turns.

RTN, HQQ, GPTQ, decoupleQ and alternating least squares at int2_g64_affine and int4_g64_affine (catalogue E1, E3, E7,
E13).

Papers: HQQ (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog); an independent bench of the base SmolLM2-135M,
WikiText-2, has float 15.42 and at 4 bits g64 RTN 19.95, HQQ 20.15, GPTQ 19.50, at 3 bits 66.2, 142 and 37.8. decoupleQ
(Guo et al. 2024, arXiv:2404.12759; the authors' README), Llama-7B at 2 bits: 9.49, after its block stage.

Expected: HQQ, which never sees the data, about RTN; GPTQ better than both, decoupleQ best; at two bits by factors.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/two_bits_uniform.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("two_bits_uniform")
    config.replicates = 3
    config.recipe = {
        "methods": ("rtn", "hqq", "gptq", "decoupleq", "alternating"),
        "format": ("int2_g64_affine", "int4_g64_affine"),
    }
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (
        ("hqq int2_g64_affine", "rtn int2_g64_affine"),
        ("gptq int2_g64_affine", "hqq int2_g64_affine"),
        ("decoupleq int2_g64_affine", "gptq int2_g64_affine"),
        ("hqq int4_g64_affine", "rtn int4_g64_affine"),
    )
    return config
