"""Static 4-bit activations: one scale for each cluster of channels with like ranges, or one for all (catalogue G9).

RPTQ with 32 and 8 clusters, and with a single one, which is a scale and zero point for the tensor.

Paper: RPTQ (Yuan et al. 2023, arXiv:2304.01089): the difference of the channels' ranges is what makes activations hard
to quantize; with clusters OPT models keep near their perplexity at 4 bits.

Expected: the more clusters, the better; a single one far behind.

Cost: not measured yet; an estimate from the quickstart's rows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/rptq.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("rptq")
    config.replicates = 3
    config.extra = {"rptq": {"clusters": (32, 8, 1)}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("rptq 32", "rptq 8"), ("rptq 32", "rptq 1"))
    return config
