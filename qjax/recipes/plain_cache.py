"""Keys and values in a number format, each head of each token with its own scales: the baseline of every cache codec.

Catalogue N6. The accounts of KIVI (Liu et al. 2024, arXiv:2402.02750) and of KVQuant (Hooper et al. 2024,
arXiv:2401.18079) start from it: harmless at 8 bits, good at 4 with a zero point and small groups, broken at 2.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def kv_cache(format: str = "int8", keys: str | None = None, values: str | None = None) -> Chain:
    """Round what attention remembers to `format`, or keys and values to formats of their own. Catalogue N6."""
    return transforms.chain(transforms.cache_quantize(keys or format, values or format))
