"""A few input channels in half precision restore eight and four bits.

LLM.int8 with several thresholds on the size of a channel's largest input; the paper's 6 counts for its models, so
larger ones stand beside it (catalogue G4, T1).

Paper: LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339): with threshold 6 no loss up to 175 billion parameters.

Expected: small differences at eight bits on a model of this size, the lower threshold never worse.

Cost: 25 minutes and 6.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/float_columns.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("float_columns")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    config.extra = {"llm_int8": {"threshold": (6.0, 25.0, 100.0, 1e9)}}
    config.claims = (
        ("llm_int8 6.0", "llm_int8 1000000000.0"),
        ("llm_int8 25.0", "llm_int8 1000000000.0"),
        ("llm_int8 100.0", "llm_int8 1000000000.0"),
    )
    return config
