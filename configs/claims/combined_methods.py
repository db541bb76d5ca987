"""Combining smoothing or rotation with compensation and with block formats beats each alone.

W4A8: weights with a scale an output or in MXINT4, inputs in eight bits a token; SmoothQuant or not, a rotation of every
input or not, round to nearest or GPTQ, in all combinations (catalogue E29, T25, T26).

Paper: Sharify et al. 2024 (arXiv:2405.07135): SmoothQuant and GPTQ together in MXINT formats beat either alone for
some sizes.

Expected: GPTQ helps in every combination; the gains of two methods do not add up.

Cost: 74 minutes and 6 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/combined_methods.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("combined_methods")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    formats, turned, smoothed = ("int4_channel", "mxint4"), ("none", "inputs"), (None, 0.5)
    config.extra = {
        name: {
            "format": formats,
            "inputs": "int8",
            "rotation": turned,
            "smoothing": smoothed,
            "method": ("rtn", "gptq"),
        }
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        *((f"{name} {f} gptq {r} {s}", f"{name} {f} rtn {r} {s}") for f in formats for r in turned for s in smoothed),
        (f"{name} mxint4 gptq inputs 0.5", f"{name} mxint4 gptq none None"),
        (f"{name} mxint4 gptq none 0.5", f"{name} mxint4 gptq none None"),
        (f"{name} mxint4 gptq inputs None", f"{name} mxint4 gptq none None"),
    )
    return config
