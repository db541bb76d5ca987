"""GlowQ, by An, Suh and Kim 2026 (arXiv:2603.25385): one right factor for all matrices that read an input.

Catalogue F6. 4-bit groups and rank 64 as in the authors' configs, with the Gram matrix drawn 5 % towards the identity
and factors in float16. Which groups to restore (the paper's GlowQ-S) is a selection: `qjax.masked`.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def glowq(format: str = "int4_g64", rank: int = 64) -> Chain:
    """Round to nearest, then low-rank terms with shared factors. Catalogue F6."""
    return transforms.chain(transforms.rtn(format), transforms.shared_low_rank(rank, store="float16"))
