"""The super weight in large language models, by Yu et al. 2024 (arXiv:2411.07191): lost, and kept.

Section 3 removes one weight of an early down projection, against thousands of other outliers; nothing is quantized.
Section 4 keeps it in float while all others are cut at so many standard deviations and rounded to nearest, in blocks
larger than usual, and keeps the one activation it makes beside inputs with one scale a tensor. The number of deviations
is found on a few hundred examples there and is an argument here.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain
from qjax.transforms.interventions import By


def without_weights(count: int = 1, by: By = "product", skip: int = 0) -> Chain:
    """`count` weights of the down projections set to zero: super weights, or the largest but `skip` of them.

    Catalogue T6.
    """
    return transforms.chain(transforms.named(transforms.zero_weights(count, by=by, skip=skip), "*/down"))


def super_weights(
    format: str = "int4_channel",
    count: int = 1,
    deviations: float | None = None,
    activations: str | None = None,
) -> Chain:
    """Round to nearest with `count` super weights and, in each input's block, one activation apart. Catalogue I9.

    None leaves the activations in float; "int8_tensor" is the paper's. `deviations=None` cuts no weight.
    """
    return transforms.chain(
        transforms.keep_super_weights(format, count, deviations=deviations),
        () if activations is None else transforms.act_quantize(activations, keep=1),
    )
