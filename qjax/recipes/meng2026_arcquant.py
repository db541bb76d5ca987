"""ARCQuant, by Meng et al. 2026 (arXiv:2601.07475): outlier channels twice in NVFP4, in one product.

Section 3: channels in the order of their largest magnitude; those beyond an eighth of the layer's largest, filled up to
whole blocks, have their rounding errors rounded again as channels of the same format, against the same weights.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def arcquant(format: str = "nvfp4", share: float = 0.125, channels: int | None = None) -> Chain:
    """Weights and inputs in one format, the channels beyond `share` of the largest twice. Catalogue G19.

    `channels` says how many of the largest instead.
    """
    return transforms.chain(transforms.residual_channels(format, share=share, channels=channels))
