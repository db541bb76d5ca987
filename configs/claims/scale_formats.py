"""What the scale of a four-bit float block is stored in.

Blocks of 16 E2M1 values in weights and inputs under powers of two (E8M0), E4M3 below a float32 for the tensor
(NVFP4), E4M3 alone, and UE5M3 alone (catalogue A22, A20).

Paper: Chmiel et al. 2025 (arXiv:2505.19115), on training in FP4: NVFP4's format best, blocks of 16; UE5M3 is the
catalogue's compromise without a tensor scale.

Expected: UE5M3 about as good as NVFP4, both better than E8M0.

Cost: 6 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/scale_formats.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("scale_formats")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    config.extra = {name: {"format": ("nvfp4", "nvfp4_ue5m3", "nvfp4_e4m3", "nvfp4_e8m0")}}
    config.claims = (
        (f"{name} nvfp4_ue5m3", f"{name} nvfp4_e8m0"),
        (f"{name} nvfp4", f"{name} nvfp4_e8m0"),
        (f"{name} nvfp4", f"{name} nvfp4_ue5m3"),
        (f"{name} nvfp4", f"{name} nvfp4_e4m3"),
    )
    return config
