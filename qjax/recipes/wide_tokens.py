"""Inputs whose width follows the token: a few bits for most, more for tokens with outliers.

Token-adaptive quantization as a family; HotaQ (Shen et al. 2024, doi 10.1109/tcad.2024.3487781) names it. How that
paper ranks its tokens is not in what is published freely, so the rule here is our own: a token's crest factor, which
decides what a symmetric scale loses.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def token_adaptive(
    format: str = "int4_channel", narrow: str = "int4", wide: str = "int8", crest: float = 12.0
) -> Chain:
    """Rounded weights; inputs in the `wide` format where a token's max |x| / rms is at least `crest`, else `narrow`."""
    return transforms.chain(transforms.rtn(format), transforms.token_adaptive(narrow, wide, crest=crest))
