"""ASER, by Zhao et al. 2024 (arXiv:2411.07762): activation smoothing and error reconstruction, for W4A8.

Catalogue F4. The outlier channels' inputs are divided down and their weights leave the 4-bit matrix for the low-rank
term, which a whitened SVD fits to all that is missing; inputs are then rounded to 8 bits a token.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def aser(format: str = "int4_channel", rank: int = 32, outliers: int = 32, activation: str = "int8") -> Chain:
    """Smooth, round, rebuild what is lost, round the inputs. Catalogue F4."""
    return transforms.chain(
        transforms.smooth_outliers(outliers),
        transforms.aser(format, rank=rank, outliers=outliers),
        transforms.act_quantize(activation),
    )
