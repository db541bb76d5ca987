"""OWQ: outlier-aware weight quantization (Lee et al. 2024, arXiv:2306.02272).

Catalogue E9. A few weak input channels of every matrix in half precision, the rest by GPTQ (the authors' option
`--target_rank`). Their later fine-tuning of only the weak channels is not part of it.
"""

from __future__ import annotations

from typing import Literal

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def owq(format: str = "int3_g64_affine", channels: int = 6, order: Literal["none", "activation"] = "none") -> Chain:
    """The `channels` most sensitive inputs of each matrix stay float16. Catalogue E9."""
    f = as_format(format)
    name = f"owq {f.name} {channels} channels"
    return chain(quantize_with(solvers.owq, f, name=name, statistics=("gram",), channels=channels, order=order))
