"""Tables fitted where the loss is sensitive, beside even grids.

SqueezeLLM with and without its sparse part, GPTQ and RTN a channel at 3 bits (catalogue E11, E3, E1).

Paper: SqueezeLLM (Kim et al. 2024, arXiv:2306.07629): Llama-7B on C4 at 3 bits, dense only, 7.75 from 7.08 in 16 bits;
abstract: a gap up to 2.1 times smaller than that of other methods of equal memory.

Expected: both far below RTN and GPTQ on one scale a channel; on outputs 576 wide the tables cost a fifth of a bit,
stated in the table.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/sensitive_clusters.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("sensitive_clusters")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "gptq"), "format": ("int3",)}
    config.extra = {"squeezellm": {"format": "int3", "outliers": (0.0001, 0.004)}}
    config.calibration = {"windows": 16, "length": 512, "batch": 4}
    config.claims = (
        ("squeezellm int3 0.004", "squeezellm int3 0.0001"),
        ("squeezellm int3 0.004", "gptq int3"),
    )
    return config
