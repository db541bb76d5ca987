"""Eight bits in weights and inputs, FP8 against INT8, beside four bits in the weights alone.

FP8 and INT8 with a scale a channel and a token, and GPTQ in int4_g64 with ranges searched for the least squared error
(catalogue T29, A10, B5, E3).

Papers: Kurtic et al. 2024 (arXiv:2411.02355) on Llama 3.1: FP8 loses nothing, INT8 one to three per cent of the
scores, four-bit weights as much as INT8.

Expected: FP8 no worse than INT8. That four-bit weights equal INT8 is a claim about large models; here they should be
clearly worse, so the claim is written the other way round.

Cost: 11 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/eight_bits.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("eight_bits")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    config.extra = {
        "weights_and_inputs": {"format": ("fp8_e4m3", "int8")},
        "gptq": {"format": "int4_g64"},
    }
    config.claims = (
        ("weights_and_inputs fp8_e4m3", "weights_and_inputs int8"),
        ("weights_and_inputs int8", "gptq int4_g64"),
    )
    return config
