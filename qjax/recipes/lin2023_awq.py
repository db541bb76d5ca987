"""AWQ, by Lin et al. 2023 (arXiv:2306.00978): activation-aware scaling of channels, then clipping of groups.

Catalogue E8. Twenty exponents by the output error of rounding, then for all but q and k (whose products are hard to
clip for) ten clippings down to half the range.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

from qjax import transforms
from qjax.trace.use import Use
from qjax.transforms.contract import Chain


def awq(
    format: str = "int4_g64_affine", points: int = 20, clip: bool = True, unclipped: tuple[str, ...] = ("*/attn/[qk]",)
) -> Chain:
    """Scale channels, then round in clipped ranges, but for the paths of `unclipped`. Catalogue E8."""
    scaled, rounded = transforms.awq(format, points=points), transforms.rtn(format)
    if not clip:
        return transforms.chain(scaled, rounded)
    if not unclipped:
        return transforms.chain(scaled, transforms.clip(format))

    def clipped(path: str, use: Use, plan: Mapping[str, Any]) -> bool:
        return not any(fnmatch.fnmatchcase(path, p) for p in unclipped)

    return transforms.chain(
        scaled,
        transforms.named(rounded, *unclipped),
        transforms.masked(transforms.clip(format), clipped),
    )
