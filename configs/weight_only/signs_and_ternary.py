"""One bit and three values a weight without training: where the threshold and the scale come from.

Signs under their mean magnitude, around zero and around a mean (catalogue K1); ternary numbers by BitNet's rounding
under the mean magnitude and by TWN's threshold, per group as FGQ (catalogue K2, K34, K36); and both of the largest
magnitude, as a format rounds that is told nothing (catalogue E1).

Papers: XNOR-Net (Rastegari et al. 2016, arXiv:1603.05279), TWN (Li et al. 2016, arXiv:1605.04711), FGQ (Mellempudi et
al. 2017, arXiv:1705.01462), BitNet b1.58 (Ma et al. 2024, arXiv:2402.17764). All but FGQ train; none names this model.

Expected: no model that is of use, so that perplexity only says how far each is from one: mean magnitudes less far than
largest ones. What the formats lose of the weights is in the report's layer errors.

Cost: not measured as a whole; an estimate from one replicate on few windows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/signs_and_ternary.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("signs_and_ternary")
    config.replicates = 3
    config.recipe = {"methods": ("absmean",), "format": ("binary_g64", "int1_g64_minimum", "int2_g64_narrow")}
    config.extra = {
        "twn": {"format": ("int2_g64_narrow",)},
        "rtn": {"format": ("binary_g64", "int2_g64_narrow")},
    }
    config.claims = (
        ("absmean binary_g64", "rtn binary_g64"),
        ("absmean int2_g64_narrow", "rtn int2_g64_narrow"),
    )
    return config
