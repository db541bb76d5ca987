"""Eight bits with the outlier channels in 16-bit floats, at thresholds around the authors' 6 (catalogue G4).

Three replicates of SmolLM2-135M, beside the same eight bits without exceptions, a scale a token.

Paper: LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339): without the decomposition models of 6.7B parameters and more
lose their accuracy, with it none; smaller models lose little either way.

Expected: the threshold of 6 at least as good as no exceptions, and the lower the threshold, the nearer to float.

Cost: not measured yet; an estimate from the quickstart's rows is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/llm_int8.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("llm_int8")
    config.replicates = 3
    config.extra = {"llm_int8": {"threshold": (6.0, 20.0)}, "w8a8": {"granularity": "token"}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("llm_int8 6.0", "w8a8"), ("llm_int8 6.0", "llm_int8 20.0"))
    return config
