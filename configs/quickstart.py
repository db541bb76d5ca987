"""SmolLM2-135M on the built-in text, several ways.

Float, round-to-nearest and GPTQ at int4_g64, int3_g64_affine, mxfp4 and nvfp4 (catalogue E1, E3, A19, A20), and 8-bit
weights and activations with one activation scale per token or per tensor (catalogue C1, C3).

Papers: GPTQ (Frantar et al. 2022, arXiv:2210.17323), OCP Microscaling Formats v1.0 (2023), ZeroQuant (Yao et al. 2022,
arXiv:2206.01861).

Expected: at three bits GPTQ closes most of the gap between round-to-nearest and float; NVFP4 beats MXFP4; a scale per
token costs almost nothing, one per tensor visibly more.

Cost: about 10 minutes and 3.5 GB on 2 cores.

    python -m experiments.run --config=configs/quickstart.py
    python -m experiments.report runs/
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("quickstart")
    config.recipe = {"methods": ("rtn", "gptq"), "format": ("int4_g64", "int3_g64_affine", "mxfp4", "nvfp4")}
    config.extra = {"w8a8": {"granularity": ("token", "tensor")}}
    config.calibration = {"windows": 16, "length": 512, "batch": 4}
    config.evaluation = {"windows": 16, "length": 256, "batch": 4, "part": "report"}
    config.samples = {
        "prompts": (
            "The three primary colors are",
            "In Python, a list comprehension is",
            "The capital of France is Paris. The capital of Italy is",
        ),
        "rows": ("float", "rtn int3_g64_affine", "gptq int3_g64_affine"),
        "steps": 48,
    }
    config.pictures = True
    return config
