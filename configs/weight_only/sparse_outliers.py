"""A few weights in float beside the rest in few bits.

RTN at 3 bits with and without half a percent of sparse outliers, GOBO at 3 bits, and INT8 with a twentieth in float32
(catalogue E12, E28, M13).

Paper: GOBO (Zadeh et al. 2020, arXiv:2005.03842): BERT at 3 bits within a percent of float; LLM-MQ (Li et al. 2023):
sparse outliers at 2 to 4 bits.

Expected: outliers better than RTN at equal width (and at 16 + 24 bits an entry not much larger); GOBO, one table a
matrix, worse than groups of 64.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/sparse_outliers.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("sparse_outliers")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "llm_mq"), "format": ("int3_g64_affine",)}
    config.extra = {"gobo": {"bits": 3}, "int8_with_float_outliers": {}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("llm_mq int3_g64_affine", "rtn int3_g64_affine"),)
    return config
