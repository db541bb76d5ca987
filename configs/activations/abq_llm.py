"""Two-bit weights: balanced levels and a learned correction, against OmniQuant (catalogue G18).

ABQ-LLM with its five levels and OmniQuant with four affine ones, a twentieth of the authors' steps, 8-bit activations.

Paper: ABQ-LLM (Zeng et al. 2024, arXiv:2408.08554): LLaMA-7B with 2*-bit weights and 8-bit activations has a perplexity
of 7.59 on WikiText-2, where AffineQuant has 9.76.

Expected: ABQ-LLM better than OmniQuant (its levels need 2.3 bits, not 2).

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/abq_llm.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("abq_llm")
    config.replicates = 3
    config.extra = {
        "abq_llm": {"steps": 128},
        "omniquant": {"format": "int2_affine", "activations": "int8_affine", "steps": 128},
    }
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (("abq_llm", "omniquant int2_affine"),)
    return config
