"""Does a weight-only model gain from the float model's keys and values of the start token (catalogue I8)?

GPTQ at 3 bits in groups of 64 with a zero point (128 does not divide 576), with and without IntactKV, and with a prefix
that is trained.

Paper: IntactKV (Liu et al. 2024, arXiv:2403.01241): lower perplexity than the quantized model alone, at every width.

Expected: a small gain that training widens. The rows with a prefix see a start token that the others do not see, and
are compared with the float model without it.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/activations/intactkv.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("intactkv")
    config.replicates = 3
    config.extra = {
        "gptq": {"format": "int3_g64_affine", "order": "none"},
        "intactkv": {"format": "int3_g64_affine", "steps": (0, 40)},
    }
    config.calibration = {"windows": 16, "length": 512, "batch": 2}
    config.claims = (
        ("intactkv int3_g64_affine 0", "gptq int3_g64_affine"),
        ("intactkv int3_g64_affine 40", "intactkv int3_g64_affine 0"),
    )
    return config
