"""CBQ, by Ding et al. 2023 (arXiv:2312.07950): cross-block quantization for large language models.

Catalogue D10, without its treatment of outliers before: windows of two blocks that overlap by one, LoRA-Rounding of
rank 5, and the squared error plus the KL divergence of the window's output.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import LoRARounding, squared_distance_and_kl
from qjax.transforms.contract import Chain


def cbq(format: str = "int4_g64", steps: int = 200, rate: float = 1e-2, window: int = 2, rank: int = 5) -> Chain:
    """Low-rank rounding variables learned over a sliding window of blocks. Catalogue D10."""
    rule = LoRARounding(as_format(format), rank)
    return transforms.chain(
        transforms.learn(
            rule,
            optimizer=optax.adam(rate),
            steps=steps,
            scope="window",
            window=window,
            distance=squared_distance_and_kl,
        )
    )
