"""Norm tweaking, by Li et al. 2023 (arXiv:2309.02784): after GPTQ, only the gains of the norms are tuned.

Catalogue D14. One pass of Adam at 1e-5 over the calibration data for each block, on the distance of its channels'
means and variances. The gains stand in front of the leaves that read a norm; `qjax.fold` moves them into it.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def norm_tweaking(format: str = "int3_g64_affine", steps: int = 32, rate: float = 1e-5) -> Chain:
    """GPTQ, then the gains in front of what reads a norm. Catalogue D14."""
    readers = ("*/attn/[qkv]", "*/ffn/gate", "*/ffn/up")
    return transforms.chain(
        transforms.gptq(format, order="activation"),
        transforms.named(transforms.norm_tweak(steps=steps, rate=rate), *readers),
    )
