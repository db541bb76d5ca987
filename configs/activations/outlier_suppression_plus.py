"""Static 8-bit activations with one scale each, channels scaled to a searched threshold or by SmoothQuant's rule.

Outlier Suppression+ without its shift (SmolLM2-135M has RMSNorms, and a shift would stay online) beside SmoothQuant
with a dynamic scale for each tensor (catalogue G7).

Paper: Outlier Suppression+ (Wei et al. 2023, arXiv:2304.09145): near float at 8 and 6 bits, ahead of SmoothQuant at 6.

Expected: Outlier Suppression+ at least as good as SmoothQuant.

Cost: not measured yet; an estimate from the quickstart's rows is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/outlier_suppression_plus.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("outlier_suppression_plus")
    config.replicates = 3
    config.extra = {
        "outlier_suppression_plus": {"shift": False},
        "smoothquant": {"format": "int8_affine", "activations": "int8_tensor"},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("outlier_suppression_plus", "smoothquant int8_affine"),)
    return config
