"""The flatter a distribution, the smaller its rounding error.

Inputs of every matrix in four bits, a scale a token, as they are, smoothed, rotated in blocks of 32 channels, rotated
whole, and both; weights stay float. Crest factor, kurtosis and flatness of what is rounded, against the error of the
output, over all matrices and rows (catalogue T13, T14).

Paper: FlatQuant (Sun et al. 2024, arXiv:2410.09426) on flatness; Chen et al. 2025 (arXiv:2510.25602) on crest factors.

Expected: a strong rank correlation for the crest factor, which is what a symmetric scale follows; weaker ones for the
others.

Cost: 34 minutes and 7 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/flat_inputs.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("flat_inputs")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    config.extra = {
        name: {"format": None, "inputs": "int4", "rotation": ("none", "blocks", "inputs"), "smoothing": (None, 0.5)}
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = ((f"{name} None inputs None", f"{name} None none None"),)
    config.relations = (
        ("crest", "output error"),
        ("kurtosis", "output error"),
        ("flatness", "output error"),
        ("crest", "perplexity"),
    )
    return config
