"""Every weight-only recipe at four, three and two bits in groups of 64, on the same tokens.

Rounding, error feedback, scaling, sensitivity, learned rounding, corrections of means and low-rank terms (catalogue
D3-D8, D10, D12, D13, D14, D15, E1, E3, E4, E5, E6, E7, E8, E9, E10, E11, E12, E13, E14, E15, E17, E18, E21, E22, E23,
E24, E26, E30, F1, F2, F3, F5, F6, F8, M13, P2). Where a method has a grid of its own (a scale a matrix, tables an
output, frames, clusters), it keeps it and has as many bits a code; what that costs stands in the column of bits. Not
here: OBQ, whose time is cubic for every output, and ASER, which rounds inputs as well.

Paper: an independent bench of the base SmolLM2-135M on WikiText-2, 4 bits in groups of 64: float 15.42, RTN 19.95, GPTQ
19.50, HQQ 20.15, an AWQ-like search 17.47: ratios to reproduce in direction. The papers of the recipes are named in
their own configs.

Expected: at four bits all within a fifth of float, low-rank terms and GPTQ's family first; at three GPTQ's family and
AWQ clear of RTN and HQQ; at two bits only methods that see the data stay usable, those that move scales and codes
together (decoupleQ, alternation, learned rounding) in front.

Cost: not measured yet; an estimate from the quickstart's rows is two to three days and 6 GB on 2 cores. Rows are kept
as they finish: the command may be stopped and goes on where it was.

    python -m experiments.run --config=configs/weight_only/shootout.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults

BITS = (4, 3, 2)
GROUPS = tuple(f"int{b}_g64_affine" for b in BITS)
SHARED = (
    *(
        "rtn",
        "gptq",
        "gptaq",
        "rescomp",
        "quantease",
        "alternating",
        "decoupleq",
        "hqq",
        "gpfq",
        "spfq",
        "owq",
        "llm_mq",
    ),
    *("awq", "smoothquant_plus", "d2quant", "unsloth_dynamic", "bias_correction", "norm_tweaking"),
    *("lorc", "lqer", "qera", "eora", "glowq", "loftq", "milo"),
)
LEARNED = ("adaround", "brecq", "adaquant", "signround", "flexround", "cbq", "tesseraq", "teq")


def get_config() -> ml_collections.ConfigDict:
    config = defaults("shootout")
    config.replicates = 3
    config.recipe = {"methods": SHARED, "format": GROUPS}
    config.extra = {
        **{method: {"format": GROUPS, "steps": 200} for method in LEARNED},
        "nupes": {"format": tuple(f"int{b}_g64" for b in BITS)},
        "spqr": {"format": tuple(f"int{b}_g16_affine" for b in BITS)},
        "quip": {"format": tuple(f"int{b}_tensor" for b in BITS)},
        "framequant": {"format": tuple(f"int{b}" for b in BITS)},
        "frames": {"format": ("int2",)},
        "gptqt": {"format": tuple(f"int{b}" for b in BITS), "first": 5},
        "squeezellm": {"format": tuple(f"int{b}" for b in BITS)},
        "gobo": {"bits": BITS},
        "mixed_groups": {},
        "bitstack": {"depth": (2, 3)},
    }
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    order = (
        ("gptq", "rtn"),
        ("awq", "rtn"),
        ("rtn", "hqq"),
        ("gptaq", "gptq"),
        ("decoupleq", "gptq"),
        ("eora", "gptq"),
    )
    config.claims = tuple((f"{a} {f}", f"{b} {f}") for f in GROUPS for a, b in order)
    return config
