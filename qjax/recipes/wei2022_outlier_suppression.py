"""Outlier Suppression, by Wei et al. 2022 (arXiv:2209.13325): gamma migration and token-wise clipping.

Section 4: the gain of every norm moves into the matrices behind it, and static ranges of the inputs give up the tokens
with the most extreme values, how many by a search; weights with a scale an output. The authors' 6-bit setting;
attention's own products stay in float here.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def outlier_suppression(
    format: str = "int6_channel",
    activations: str = "int6_tensor_affine",
    step: float = 0.01,
    most: float = 0.3,
    migrated: bool = True,
) -> Chain:
    """Gains out of the norms (unless not `migrated`), rounded weights, static ranges by tokens. Catalogue G6."""
    first = transforms.migrate_gains() if migrated else ()
    return transforms.chain(first, transforms.rtn(format), transforms.token_clip(activations, step=step, most=most))
