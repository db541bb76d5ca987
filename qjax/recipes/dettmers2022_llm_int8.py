"""LLM.int8, by Dettmers et al. 2022 (arXiv:2208.07339): 8 bits, but for the few channels with outliers.

Section 3: vector-wise INT8, a scale for each token and each output column, absmax/127; input channels with a magnitude
of 6 or more go through in 16-bit floats. The authors find these channels in every batch as it comes; here they are
those of the calibration data, so that their weights are stored once.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def llm_int8(threshold: float = 6.0, format: str = "int8_narrow_f32", store: str = "float16") -> Chain:
    """Outlier channels of the inputs in `store`, the rest of weights and inputs in `format`. Catalogue G4."""
    return transforms.chain(transforms.float_outliers(format, format, threshold=threshold, store=store))


def without_features(by: Literal["outliers", "random"] = "outliers", count: int = 7) -> Chain:
    """Section 4: what is left of the model without its outlier features, or without random ones. Catalogue T3."""
    return transforms.chain(transforms.zero_features(count, by=by))
