"""ZeroQuant-FP, by Wu et al. 2023 (arXiv:2307.09782): 4-bit float weights, 8-bit float activations.

Weights in E2M1 in groups of 256 by GPTQ, each scale rounded up to a power of two so that a weight becomes an E4M3
number by its exponent alone (the paper's M1; M2, powers of two below one real scale a row, is left out); activations in
E4M3 with a scale a token; the weights' error added back with low rank (LoRC).
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def zeroquant_fp(
    format: str = "fp4_e2m1_g256_rceil_e8m0", activations: str = "fp8_e4m3", rank: int | None = 8
) -> Chain:
    """GPTQ in a float format, a correction of `rank` (None: no), rounded inputs. Catalogue G2."""
    correction = () if rank is None else transforms.low_rank(rank, store="int8")
    return transforms.chain(transforms.gptq(format), correction, transforms.act_quantize(activations))
