"""MicroScopiQ, by Ramachandran et al. 2024 (arXiv:2411.05282): outliers at twice the bits, neighbours pruned for them.

Weights in blocks of 128 integers under a power of two, those beyond three standard deviations in floats of twice the
bits with a power of two for every eight weights, and as many of the least important weights of the eight pruned; GPTQ's
repair for all of it. Blocks lie along the inputs here; in the authors' code along the outputs of one input, where all
weights of a block have one pivot and their size alone decides which are pruned. Activations, which the paper rounds to
microscaled integers, stay as they are.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def microscopiq(
    format: str = "int4_g128_floor_e8m0",
    outliers: str = "fp8_e4m3_g8_floor_e8m0",
    deviations: float = 3.0,
    damp: float = 0.01,
) -> Chain:
    """Inliers in `format`, outliers in `outliers`, weights pruned for them. Catalogue G29.

    With 2 bits the outliers have 4: "int2_g128_floor_e8m0" and "fp4_e2m1_g8_floor_e8m0".
    """
    return transforms.chain(transforms.prune_for_outliers(format, outliers, deviations=deviations, damp=damp))
