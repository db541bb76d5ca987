"""SqueezeLLM: dense-and-sparse quantization (Kim et al. 2024, arXiv:2306.07629).

Catalogue E11. A table of 2^b values for every output, fitted by k-means weighted with the sensitivity of the loss;
0.4 % of the weights by magnitude and 0.05 % by sensitivity stay apart. The authors' sensitivity is the Fisher diagonal
of the language modelling loss (by="fisher", which needs the `loss` of `qjax.run`); that of the layer's own error needs
none.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def squeezellm(
    format: str = "int3",
    outliers: float = 0.004,
    sensitive: float = 0.0005,
    by: Literal["hessian", "fisher"] = "hessian",
) -> Chain:
    """Tables by sensitivity-weighted k-means, sparse outliers. Catalogue E11."""
    return transforms.chain(transforms.sensitive_clusters(format, outliers=outliers, sensitive=sensitive, by=by))
