"""Scales and ranges learned block by block against SmoothQuant's rule, W4A4 (catalogue G10, G11).

OmniQuant and AffineQuant with a twentieth of the authors' steps, and SmoothQuant's rule in the same formats: DuQuant
without a step of its rotations.

Paper: OmniQuant (Shao et al. 2023, arXiv:2308.13137): Llama-7B at W4A4 has a perplexity of 11.26 on WikiText-2, where
SmoothQuant is lost; AffineQuant (Ma et al. 2024, arXiv:2403.12544): 10.28.

Expected: OmniQuant better than SmoothQuant's rule, AffineQuant at least as good as OmniQuant.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/activations/omniquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("omniquant")
    config.replicates = 3
    config.extra = {
        "omniquant": {"steps": 128},
        "affinequant": {"steps": 128},
        "duquant": {"format": "int4_affine", "block": 64, "steps": 0, "clip": ((1.0, 1.0),)},
    }
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (("omniquant", "duquant int4_affine"), ("affinequant", "omniquant"))
    return config
