"""The exact greedy order of OBQ beside GPTQ's one order for all outputs.

GPTQ with and without activation order and OBQ at int4 (catalogue E2, E3).

Paper: OBQ (Frantar and Alistarh 2022, arXiv:2208.11580); GPTQ (Frantar et al. 2022, arXiv:2210.17323) compares the
two on small models and finds them alike. No published number for a language model.

Expected: no clear winner, which is GPTQ's point.

Cost: cubic in the inputs for every output: by the count of operations some 15 hours for SmolLM2 on 2 cores (an
estimate, no run has printed it). Meant for an accelerator or a small model, `--config.model=...`.

    python -m experiments.run --config=configs/weight_only/exact_greedy.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("exact_greedy")
    config.replicates = 3
    config.recipe = {"methods": ("gptq", "obq"), "format": ("int4",), "order": ("none", "activation")}
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (("obq int4", "gptq int4 none"),)
    return config
