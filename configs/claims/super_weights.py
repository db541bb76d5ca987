"""One super weight matters more than thousands of other outliers.

Weights of the down projections set to zero: the one of the largest product with its largest input; seven
thousand of the largest magnitudes, the two of the largest products left alone; a random one (catalogue T6, I9).

Paper: Yu et al. 2024 (arXiv:2411.07191), section 3: without its super weight LLaMA-7B is no language model any more,
without 7,000 other outliers it loses a few points.

Expected: as in the paper; SmolLM2-135M's is layers/11/ffn/down[1229, 507], which makes its massive activation, and
layers/28/ffn/down[678, 507], which removes it.

Cost: 20 minutes and 5.5 GB on 2 cores.

    python -m experiments.run --config=configs/claims/super_weights.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("super_weights")
    config.replicates = 5
    config.recipe = {"methods": ("without_weights",), "by": ("product", "random"), "count": 1}
    config.extra = {"without_weights": {"by": "magnitude", "count": 7000, "skip": 2}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("without_weights", "without_weights product"),
        ("without_weights random", "without_weights product"),
        ("without_weights random", "without_weights"),
    )
    return config
