"""Static activations: a scale for each channel, multiplied out beforehand, against one for all (catalogue G15, G16).

OutlierTune and RepQuant without their shift (SmolLM2-135M has RMSNorms) and one scale a tensor, at 6 bits.

Paper: OutlierTune (Wang et al. 2024, arXiv:2406.18832): OPT-IML at 6 bits as good as FP16; RepQuant (Li et al. 2024,
arXiv:2402.05628): channel-wise ranges are what static 4-bit transformers need.

Expected: both better than one scale for the tensor, which RPTQ with one cluster is.

Cost: not measured yet; an estimate from the quickstart's rows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/static_channels.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("static_channels")
    config.replicates = 3
    config.extra = {
        "outliertune": {"shift": False},
        "repquant": {"format": "int6_channel", "activations": "int6_tensor_affine", "shift": False},
        "rptq": {"format": "int6_channel", "activations": "int6_input_affine", "clusters": 1},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("outliertune", "rptq int6_channel"), ("repquant int6_channel", "rptq int6_channel"))
    return config
