"""The fewer activations become zero, the better the model: the quantization kernel explains the loss.

CrossQuant from a scale a channel (0) to a scale a token (1), at 8 and at 4 bits, behind 8-bit weights: the share of
numbers that round to zero against the perplexity (catalogue G13, T15).

Paper: CrossQuant (Liu et al. 2024, arXiv:2410.07505): the kernel's size decides, with a threshold of 19 % for OPT and
of 1 % for LLaMA models; alpha = 0.15 is the best compromise.

Expected: more zeros, more perplexity; where the threshold lies depends on the model.

Cost: 47 minutes and 6 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/quantization_kernel.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("quantization_kernel")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    config.extra = {"crossquant": {"bits": (8, 4), "alpha": (0.0, 0.15, 0.5, 1.0)}}
    config.claims = (
        ("crossquant 0.15 8", "crossquant 1.0 8"),
        ("crossquant 0.15 4", "crossquant 1.0 4"),
        ("crossquant 0.15 4", "crossquant 0.5 4"),
        ("crossquant 0.0 4", "crossquant 0.15 4"),
    )
    config.relations = (("zeros", "perplexity"), ("zeros", "output error"))
    return config
