"""The super weight in large language models, by Yu et al. 2024 (arXiv:2411.07191): what the network loses without it.

Section 3: one weight of an early down projection is removed, against thousands of other outliers. Nothing is quantized.
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
