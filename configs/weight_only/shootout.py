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
together (decoupleQ, alternation, learned rounding) in front. Two rows hang on the matrix that makes the massive
activations, layers/11/ffn/down: HQQ's free offsets have no exact zero for the row that meets them, and QuIP's Kronecker
factors spread that row so unevenly that the range cuts it off, where a Hadamard matrix does not.

Cost: not measured yet; an estimate from single rows, on 2 cores: three and a half hours and 6 GB for a part of one
width, and two for the methods at that width which train. Hence 4096 tokens of calibration, the same for all. A part is
named behind a colon and is recorded by itself, as `shootout.3`; without one all of it runs. Rows are kept as they
finish: the command may be stopped and goes on where it was.

    python -m experiments.run --config=configs/weight_only/shootout.py
    python -m experiments.run --config=configs/weight_only/shootout.py:3
    python -m experiments.run --config=configs/weight_only/shootout.py:3-trained
"""

from __future__ import annotations

import ml_collections

from experiments import settings, sweep
from experiments.settings import defaults

BITS = (4, 3, 2)
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
TRAINED = ("adaround", "brecq", "adaquant", "signround", "flexround", "cbq", "tesseraq", "teq")
PARTS = {f"{bits}{kind}": ((bits,), kind != "") for bits in BITS for kind in ("", "-trained")}
CLAIMS = (
    ("gptq", "rtn"),
    ("awq", "rtn"),
    ("rtn", "hqq"),
    ("gptaq", "gptq"),
    ("decoupleq", "gptq"),
    ("eora", "gptq"),
    *(("few_bits", method) for method in TRAINED),
)


def get_config(part: str = "") -> ml_collections.ConfigDict:
    """The whole, or one of `PARTS`: a width, and whether the methods that train run or the others."""
    if part and part not in PARTS:
        raise ValueError(f"shootout has no part {part!r}; know {', '.join(PARTS)}")
    widths, trained = PARTS.get(part, (BITS, None))
    config = defaults(f"shootout.{part}" if part else "shootout")
    config.replicates = 3
    if trained is not True:
        config.recipe = {"methods": SHARED, "format": tuple(f"int{b}_g64_affine" for b in widths)}
    config.extra = {} if trained is True else _own_grids(widths)
    if trained is not False:
        config.extra.update(_trained(widths))
    config.within = "sequential"  # GPTAQ, GPFQ and their kin need it, and all methods see the same inputs
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.evaluation = {"windows": 32, "length": 512, "batch": 8, "part": "report"}  # a batch decodes all weights once
    rows = {row.name for row in sweep.rows(settings.check(config))}
    pairs = ((f"{a} int{b}_g64_affine", f"{worse} int{b}_g64_affine") for b in BITS for a, worse in CLAIMS)
    config.claims = tuple(pair for pair in pairs if rows.issuperset(pair))
    return config


def _own_grids(widths: tuple[int, ...]) -> dict[str, dict[str, object]]:
    """The methods whose grid is their own, and what exists at one width only."""
    found: dict[str, dict[str, object]] = {
        "nupes": {"format": tuple(f"int{b}_g64" for b in widths)},
        "spqr": {"format": tuple(f"int{b}_g16_affine" for b in widths)},
        "quip": {"format": tuple(f"int{b}_tensor" for b in widths), "incoherence": ("kronecker", "hadamard")},
        "framequant": {"format": tuple(f"int{b}" for b in widths)},
        "gptqt": {"format": tuple(f"int{b}" for b in widths), "first": 5},
        "squeezellm": {"format": tuple(f"int{b}" for b in widths)},
        "gobo": {"bits": widths},
    }
    if 2 in widths:
        found |= {"frames": {"format": ("int2",)}, "mixed_groups": {}}
    if depths := tuple(b for b in widths if b < 4):
        found["bitstack"] = {"depth": depths}
    return found


def _trained(widths: tuple[int, ...]) -> dict[str, dict[str, object]]:
    """The methods that train, in fewer steps than their authors', and the combination of ours."""
    formats = tuple(f"int{b}_g64_affine" for b in widths)
    return {**{method: {"format": formats, "steps": 64} for method in TRAINED}, "few_bits": {"format": formats}}
