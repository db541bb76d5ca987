"""GPTQ, by Frantar et al. 2022 (arXiv:2210.17323): accurate post-training quantization of generative transformers.

Catalogue E3. The authors' code runs a block's matrices in the order of their inputs on the already quantized prefix,
with 1 % damping; `--act-order` came later and `--static-groups` keeps the groups in place under it.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def gptq(
    format: str = "int4_g64",
    order: Literal["none", "activation"] = "activation",
    groups: Literal["static", "stale", "fresh"] = "static",
    damp: float = 0.01,
) -> Chain:
    """Column by column, each rounding error spread over the columns not yet rounded. Catalogue E3."""
    return transforms.chain(transforms.gptq(format, order=order, groups=groups, damp=damp))
