"""FlexGen, by Sheng et al. 2023 (arXiv:2303.06865): weights and cache in 4 bits between their group's ends.

Section 4.3, group-wise quantization: groups of 64 consecutive values, of a weight along its inputs and of keys and
values along a head, from the least to the largest value in 16 steps. The numbers only; what the paper is about,
offloading for throughput, is not here.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def flexgen(format: str = "int4_g64_minimum", cache: str | None = "int4_g64_minimum") -> Chain:
    """Rounded weights and a rounded cache; None leaves that in float. Catalogue G22."""
    return transforms.chain(transforms.rtn(format), () if cache is None else transforms.cache_quantize(cache, cache))
